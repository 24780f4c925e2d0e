"""How a network is trained: plain data, and the learning rate that follows from it.

Stochastic gradient descent with Nesterov momentum, one-cycle learning rate (linear up, cosine
down; Smith 2018, arXiv 1803.09820), no weight decay on BatchNorm and biases, and an exponential
average of the weights (Polyak and Juditsky 1992). Images are augmented (`augmentation`), small
crops may come first (they cost little more than half), and the network may learn from the outputs
of others that are trained already (Hinton et al. 2015, arXiv 1503.02531).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.training.cifar10 import SIDE

SMALL_SIDE = 24
MAX_ZOOM = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data and the machine."""

    architecture: str = "cifar_resnet20_v1"
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 0.2
    """At its peak."""
    warm_up: float = 0.15
    """Share of all steps in which the learning rate rises."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    averaging: float = 0.999
    """The average keeps this share of itself at every step."""
    small: float = 0.0
    """Share of all steps, the first ones, whose crops have 24 x 24 pixels instead of 32 x 32."""
    cutout: int = 0
    """Side in pixels of the square that is blanked in each image."""
    zoom: float = 0.0
    """Crops are resized from exp(-zoom) to exp(zoom) times their size. 0: they are not resized."""
    color: float = 0.0
    """Contrast and brightness vary by this share, saturation by twice as much."""
    sharpness: float = 0.0
    """From 0 to this, images are blurred or sharpened. At 1, blurred with a 3 x 3 kernel."""
    mixup: float = 0.0
    """Each image is blended with another, by Beta(mixup, mixup). 0: images are not blended."""
    held_out: int = 0
    """Number of training images, the last ones, to measure on instead of training on them."""
    teacher: str = ""
    """`name/version` of networks in the store to learn from, separated by commas."""
    temperature: float = 4.0
    """By which the logits of teachers and network are divided before they are compared."""
    teacher_weight: float = 0.9
    """Share of the loss that compares with the teachers; the rest compares with the labels."""
    views: int = 0
    """Epochs after which the same augmented images come again, so that teachers compute each only
    once. 0: every epoch has new images."""
    start: str = ""
    """`name/version` in the store whose weights training starts from. Empty: from random ones."""
    seed: int = 1

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
