"""How a network is trained: plain data, and the learning rate that follows from it.

Stochastic gradient descent with Nesterov momentum, one-cycle learning rate (linear up, cosine
down; Smith 2018, arXiv 1803.09820), no weight decay on BatchNorm and biases, and an exponential
average of the weights (Polyak and Juditsky 1992). Images are augmented (`augmentation`), small
crops may come first (they cost little more than half), and the network may learn from the outputs
of others that are trained already (Hinton et al. 2015, arXiv 1503.02531).
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
    """A field that is an option of `train`, with the text that `--help` shows."""
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, except the data and the machine.

    Each field is an option of `python -m model_store train`.
    """

    architecture: str = _option("cifar_resnet20_v1", "name of the network")
    epochs: int = _option(40, "number of epochs")
    batch_size: int = _option(128, "images in a step")
    learning_rate: float = _option(0.2, "peak of the learning rate")
    warm_up: float = _option(0.15, "share of all steps in which the learning rate rises")
    momentum: float = _option(0.9, "Nesterov momentum")
    weight_decay: float = _option(5e-4, "weight decay, without BatchNorm and biases")
    averaging: float = _option(
        0.999, "share of itself that the average of the weights keeps at every step"
    )
    small: float = _option(
        0.0, "share of all steps, the first ones, that see crops of 24 x 24 pixels"
    )
    cutout: int = _option(0, "side in pixels of the gray square that is blanked in each image")
    zoom: float = _option(
        0.0, "crops are resized from exp(-zoom) to exp(zoom) times their size; 0: not resized"
    )
    color: float = _option(
        0.0, "share by which contrast and brightness vary; saturation varies by twice as much"
    )
    sharpness: float = _option(
        0.0, "images are blurred or sharpened by up to this; at 1, blurred with a 3 x 3 kernel"
    )
    mixup: float = _option(
        0.0, "images are blended with others by Beta(mixup, mixup); 0: not blended"
    )
    held_out: int = _option(
        0, "number of training images, the last ones, to measure instead of training on them"
    )
    teacher: str = _option("", "NAME/VERSION of networks to learn from, separated by commas")
    temperature: float = _option(
        4.0, "divides the logits of teachers and network before they are compared"
    )
    teacher_weight: float = _option(
        0.9, "share of the loss that compares with the teachers; the rest is of the labels"
    )
    views: int = _option(
        0,
        "epochs after which the same augmented images come again, so that teachers compute each "
        "only once; 0: every epoch has new images",
    )
    start: str = _option("", "NAME/VERSION whose weights the run starts from; random by default")
    seed: int = _option(1, "seed of the first weights, the order and the augmentation")

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnknownArchitecture(self.architecture)
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"--teacher-weight {self.teacher_weight} is not from 0 to 1")
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature} is not above 0")
        if not 0 <= self.zoom <= MAX_ZOOM:
            raise ValueError(f"--zoom {self.zoom} is not from 0 to {MAX_ZOOM}")
        for name in ("mixup", "color", "sharpness", "held_out", "views"):
            if getattr(self, name) < 0:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} {getattr(self, name)} is below 0")

    @property
    def teachers(self) -> tuple[str, ...]:
        """`name/version` of each teacher."""
        return tuple(name for name in self.teacher.split(",") if name)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of `step` (from 0) of `steps`."""
        rise = max(1, round(self.warm_up * steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    def side_at(self, step: int, steps: int) -> int:
        """Pixels along a side of the crops of `step` (from 0) of `steps`."""
        return SMALL_SIDE if step < self.small * steps else SIDE
