"""How a network is trained: plain data, and the learning rate that follows from it.

Stochastic gradient descent with Nesterov momentum, one-cycle learning rate (linear up, cosine
down; Smith 2018, arXiv 1803.09820), mirrored and moved crops with a hole in them (DeVries and
Taylor 2017, arXiv 1708.04552), small ones first (they cost little more than half), no weight decay
on BatchNorm and biases, and an exponential average of the weights (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.training.cifar10 import SIDE

SMALL_SIDE = 24


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
    start: str = ""
    """`name/version` in the store whose weights training starts from. Empty: from random ones."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UnknownArchitecture(self.architecture)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of `step` (from 0) of `steps`."""
        rise = max(1, round(self.warm_up * steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2

    def side_at(self, step: int, steps: int) -> int:
        """Pixels along a side of the crops of `step` (from 0) of `steps`."""
        return SMALL_SIDE if step < self.small * steps else SIDE
