"""Architectures: lists the neural networks that can be served: GluonCV's networks for CIFAR.

The module `architectures` of each backend builds the networks. Architectures and parameters have
the same names as in GluonCV.
"""

from __future__ import annotations

ARCHITECTURES = (
    "cifar_resnet20_v1",
    "cifar_resnet56_v1",
    "cifar_resnet110_v1",
    "cifar_resnet20_v2",
    "cifar_resnet56_v2",
    "cifar_resnet110_v2",
    "cifar_wideresnet16_10",
    "cifar_wideresnet28_10",
    "cifar_wideresnet40_8",
    "cifar_resnext29_32x4d",
    "cifar_resnext29_16x64d",
    "cifar_wideresnet16_3",
)
"""Names of all architectures. GluonCV can build the last architecture, but has no name for it."""


class UnknownArchitecture(ValueError):
    """There is no architecture with the given name. The message lists all names."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
