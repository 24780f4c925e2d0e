"""A second opinion: CIFAR ResNet-20 in NumPy, float64, from the paper and not from MXNet.

He et al. 2015, arXiv 1512.03385, section 4.2: a 3x3 convolution, three stages of three basic
blocks with 16, 32 and 64 channels, the second and third halving the image in their first block,
global average pooling, a dense layer, softmax. Every convolution is followed by batch
normalisation with the statistics gathered in training.

GluonCV's `cifar_resnet20_v1`, whose parameters this takes by their names, differs twice, and so
does this: no ReLU after the first convolution, and where a stage changes the number of channels
the shortcut is a 1x1 convolution with batch normalisation (the paper's option B) instead of
padding with zeros. Images stay as they are uploaded: height x width x channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
EPSILON = 1e-5  # Gluon's BatchNorm, unless told otherwise
STAGES = 3
BLOCKS = 3


def probabilities(
    arrays: Mapping[str, NDArray[Any]],
    images: NDArray[np.uint8],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    temperature: float = 1.0,
) -> Array:
    """One row of probabilities per image of (n, 32, 32, 3); every array must have a part in it."""
    unused = {name: array.astype(np.float64) for name, array in arrays.items()}
    x = (images / 255 - mean) / std
    x = _normalised(unused, "features.1", _convolved(unused, "features.0", x))
    for stage in range(STAGES):
        for block in range(BLOCKS):
            x = _block(unused, f"features.{2 + stage}.{block}", x)
    logits = x.mean(axis=(1, 2)) @ unused.pop("output.weight").T + unused.pop("output.bias")
    assert not unused, f"no part of the network: {sorted(unused)}"
    logits /= temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax: Array = powers / powers.sum(axis=1, keepdims=True)
    return softmax


def _block(unused: dict[str, Array], name: str, x: Array) -> Array:
    """Two convolutions and a way around them. A way with weights halves the image."""
    around = x
    stride = 1
    if f"{name}.downsample.0.weight" in unused:
        stride = 2
        around = _convolved(unused, f"{name}.downsample.0", x, stride)
        around = _normalised(unused, f"{name}.downsample.1", around)
    x = _convolved(unused, f"{name}.body.0", x, stride)
    x = np.maximum(_normalised(unused, f"{name}.body.1", x), 0)
    x = _convolved(unused, f"{name}.body.3", x)
    return np.maximum(_normalised(unused, f"{name}.body.4", x) + around, 0)


def _convolved(unused: dict[str, Array], name: str, x: Array, stride: int = 1) -> Array:
    weight = unused.pop(f"{name}.weight")
    _, channels, height, width = weight.shape
    padded = np.pad(x, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
    # What each output pixel sees, then its product with every filter: (n, y, x, height, width,
    # from) times (to, from, height, width).
    windows = sliding_window_view(padded, (1, height, width, channels))
    seen = windows[:, ::stride, ::stride, 0, 0]
    convolved: Array = np.tensordot(seen, weight, axes=((3, 4, 5), (2, 3, 1)))
    return convolved


def _normalised(unused: dict[str, Array], name: str, x: Array) -> Array:
    gamma, beta = unused.pop(f"{name}.gamma"), unused.pop(f"{name}.beta")
    mean, variance = unused.pop(f"{name}.running_mean"), unused.pop(f"{name}.running_var")
    return (x - mean) / (variance + EPSILON) ** 0.5 * gamma + beta
