"""Recipe: the options of a training run.

Networks are trained by stochastic gradient descent with Nesterov momentum. The learning rate rises
linearly and then falls like a cosine (one-cycle; Smith 2018, arXiv 1803.09820). Parameters of
BatchNorm and biases have no weight decay. The result of the run is an exponential average of the
weights (Polyak and Juditsky 1992).

Images are augmented (see `augmentation`). The first steps may use small crops. A step with small
crops takes slightly more than half as long. The network may also learn from the outputs of
teachers, which are networks that are already trained (Hinton et al. 2015, arXiv 1503.02531).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.training.cifar10 import SIDE

T = TypeVar("T")

SMALL_SIDE = 24
MAX_ZOOM = 0.5


def _option(default: T, meaning: str) -> T:
    """Return a field that is an option of `train`. `meaning` is the text that `--help` shows."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """The options of a training run that affect the weights.

    Each field is an option of `python -m model_store train`. `--help` describes all options. With
    the same recipe, data and number of threads, training on a CPU gives the same weights.
    """

    architecture: str = _option("cifar_resnet20_v1", "name of the architecture")
    epochs: int = _option(40, "number of epochs")
    batch_size: int = _option(128, "number of images in a step")
    learning_rate: float = _option(0.2, "maximum learning rate")
    warm_up: float = _option(0.15, "share of all steps in which the learning rate rises")
    momentum: float = _option(0.9, "Nesterov momentum")
    weight_decay: float = _option(
        5e-4, "weight decay of all parameters except biases and the parameters of BatchNorm"
    )
    averaging: float = _option(0.999, "decay per step of the exponential average of the weights")
    small: float = _option(
        0.0, "share of the steps, from the first step on, that use crops of 24 x 24 pixels"
    )
    cutout: int = _option(
        0, "side in pixels of a square that is replaced by gray in each image; 0: no square"
    )
    zoom: float = _option(
        0.0, "vary the size of crops by factors from exp(-zoom) to exp(zoom); 0: a fixed size"
    )
    color: float = _option(
        0.0, "share by which contrast and brightness vary; saturation varies by twice this share"
    )
    sharpness: float = _option(
        0.0,
        "maximum strength of blurring and sharpening; strength 1 blurs with a 3 x 3 kernel",
    )
    mixup: float = _option(
        0.0, "blend pairs of images, with random shares from Beta(mixup, mixup); 0: no blending"
    )
    held_out: int = _option(
        0,
        "number of images at the end of the training data that are not trained on, but used to "
        "measure the accuracy",
    )
    teacher: str = _option("", "NAME/VERSION of networks to learn from, separated by commas")
    temperature: float = _option(
        4.0,
        "number by which the logits of teachers and network are divided before their comparison",
    )
    teacher_weight: float = _option(
        0.9,
        "share of the loss that compares the outputs with the teachers' outputs; the remaining "
        "share compares the outputs with the labels",
    )
    views: int = _option(
        0,
        "number of epochs after which the same augmented images are used again, so that teachers "
        "compute each image only once; 0: every epoch has new images",
    )
    start: str = _option(
        "",
        "NAME/VERSION of the network with the initial weights (default: random weights)",
    )
    seed: int = _option(1, "seed of the initial weights, the order and the augmentation")

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnknownArchitecture(self.architecture)
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"--teacher-weight {self.teacher_weight} must be from 0 to 1")
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature} must be above 0")
        if not 0 <= self.zoom <= MAX_ZOOM:
            raise ValueError(f"--zoom {self.zoom} must be from 0 to {MAX_ZOOM}")
        for name in ("mixup", "color", "sharpness", "held_out", "views"):
            if getattr(self, name) < 0:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)} must be at least 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        """`name/version` of each teacher."""
        return tuple(name for name in self.teacher.split(",") if name)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` of `steps` steps, counted from 0."""
        rise = max(1, round(self.warm_up * steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    def side_at(self, step: int, steps: int) -> int:
        """Return the side in pixels of the crops in step `step` of `steps`, counted from 0."""
        return SMALL_SIDE if step < self.small * steps else SIDE
