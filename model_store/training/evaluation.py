"""Evaluation: computes accuracy and calibration from probabilities and labels, with NumPy only.

Probabilities are calibrated if they match the accuracy: of the images predicted with probability
0.8, 80 % are classified correctly. Expected calibration error, reliability bins and temperature
scaling follow Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599. Images
are divided into `BINS` bins of equal width by the probability of their most probable class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Probabilities = npt.NDArray[np.float32]
"""Probabilities of images: float32 (images, classes)."""
Labels = npt.NDArray[np.int64]
"""Index of the class of each image: int64 (images,)."""

BINS = 15
MIN_PROBABILITY = 1e-30
"""Lower limit of a probability before its logarithm is computed. The logarithm of 0 is infinite and
would make all means infinite."""
MAX_TEMPERATURE, MIN_TEMPERATURE = 20.0, 0.05
STEPS = 60
"""Number of steps of the search for a temperature."""
GOLDEN = (5**0.5 - 1) / 2
"""Factor by which each step of the search shortens the interval: 1 / golden ratio."""


class Bin(BaseModel):
    """Images whose most probable class has a probability above `above` and at most `to`."""

    model_config = ConfigDict(frozen=True)

    above: float
    to: float
    images: int
    """Number of images in the bin."""
    probability: float | None
    """Mean probability of the most probable classes. None: the bin is empty."""
    accuracy: float | None
    """Share of the bin's images that are classified correctly. None: the bin is empty."""


class Evaluation(BaseModel):
    """Accuracy and calibration of a network on a set of images."""

    model_config = ConfigDict(frozen=True)

    images: int
    """Number of images."""
    accuracy: float
    """Share of the images that are classified correctly."""
    by_class: dict[str, float | None]
    """Class -> share of its images that are classified correctly. None: the class has no image."""
    confusion: list[list[int]]
    """Number of images by label (row) and most probable class (column), in the order of the
    classes."""
    negative_log_likelihood: float
    """Mean of -log(probability of the label), in nats."""
    calibration_error: float
    """Expected calibration error: the mean distance between probability and accuracy over the bins
    of `reliability`, weighted by the number of images in each bin."""
    reliability: list[Bin]
    """The reliability bins, in increasing order of probability."""


def evaluate(probabilities: Probabilities, labels: Labels, classes: Sequence[str]) -> Evaluation:
    """Compute the accuracy and the calibration.

    Args:
        probabilities: Probabilities of the images.
        labels: Label of each image.
        classes: Class names, in the order of the columns of `probabilities`.

    Raises:
        ValueError: There is no image, or a row of `probabilities` is not one finite number for each
            class.
    """
    if not len(labels):
        raise ValueError("there are no images")
    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"the probabilities have the shape {probabilities.shape} instead of "
            f"({len(labels)}, {len(classes)})"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("some probabilities are not finite")
    best = probabilities.argmax(axis=1)
    right = best == labels
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (labels, best), 1)
    of_class = confusion.sum(axis=1)
    bins = _reliability(probabilities.max(axis=1), right)
    return Evaluation(
        images=len(labels),
        accuracy=float(right.mean()),
        by_class={
            name: float(confusion[index, index] / of_class[index]) if of_class[index] else None
            for index, name in enumerate(classes)
        },
        confusion=confusion.tolist(),
        negative_log_likelihood=_negative_log_likelihood(np.log(_safe(probabilities)), labels),
        calibration_error=calibration_error(bins),
        reliability=bins,
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error of reliability bins."""
    gaps = [
        one.images * abs(one.accuracy - one.probability)
        for one in bins
        if one.accuracy is not None and one.probability is not None
    ]
    return sum(gaps) / sum(one.images for one in bins)


def fit_temperature(probabilities: Probabilities, labels: Labels) -> float:
    """Return the temperature at which the labels are most likely.

    The log-likelihood is concave as a function of 1 / temperature, so golden-section search finds
    its maximum.

    Args:
        probabilities: Probabilities at a temperature of 1.
        labels: Label of each image.
    """
    # These logits differ from the network's by a constant in each row, which softmax ignores.
    logits = np.log(_safe(probabilities))

    def loss(inverse: float) -> float:
        scaled = logits * inverse
        return _negative_log_likelihood(scaled - _log_sum(scaled), labels)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return 2 / (low + high)


def tempered(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return the probabilities at `temperature`, given the probabilities at a temperature of 1."""
    scaled = np.log(_safe(probabilities)) / temperature
    rows: Probabilities = np.exp(scaled - _log_sum(scaled)).astype(np.float32)
    return rows


def _reliability(probabilities: npt.NDArray[np.float32], right: npt.NDArray[np.bool_]) -> list[Bin]:
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, BINS - 1)
    bins = []
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        bins.append(
            Bin(
                above=float(edges[place]),
                to=float(edges[place + 1]),
                images=count,
                probability=float(probabilities[inside].mean()) if count else None,
                accuracy=float(right[inside].mean()) if count else None,
            )
        )
    return bins


def _negative_log_likelihood(logarithms: npt.NDArray[np.float64], labels: Labels) -> float:
    return float(-logarithms[np.arange(len(labels)), labels].mean())


def _log_sum(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    maximum = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - maximum).sum(axis=1, keepdims=True))
    logarithms: npt.NDArray[np.float64] = maximum + total
    return logarithms


def _safe(probabilities: Probabilities) -> npt.NDArray[np.float64]:
    return np.maximum(probabilities.astype(np.float64), MIN_PROBABILITY)
