"""Batch: converts images to a network's input, and its logits to probabilities.

Uses NumPy only and is the same for every backend. A batch is padded to the next bucket: 1, 2, 4, 8,
... up to the largest batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from model_store.manifest import Manifest

SIDE = 32
"""Height and width of an image."""

Image: TypeAlias = npt.NDArray[np.uint8]
"""(32, 32, 3), RGB, height x width x channel."""
Probabilities: TypeAlias = npt.NDArray[np.float32]
"""(classes,), a softmax: not negative, sum 1."""
Inputs: TypeAlias = npt.NDArray[np.float32]
"""(bucket, 3, 32, 32), normalized."""
Rows: TypeAlias = npt.NDArray[np.float32]
"""(bucket, classes), logits or probabilities."""

R = TypeVar("R")


class BadRow(ArithmeticError):
    """The network's output for one image is not one finite number for each class."""


class Results(list[R]):
    """The results of a batch, one for each image in order, and when they were computed."""

    def __init__(self, results: Iterable[R], computed_at: float) -> None:
        """
        Args:
            results: One for each image of the batch.
            computed_at: By `time.monotonic`. A busy event loop receives the results later.
        """
        super().__init__(results)
        self.computed_at = computed_at


class BatchFormat:
    """Input and output of one version's network."""

    def __init__(self, model: Manifest, buckets: Sequence[int]) -> None:
        """
        Args:
            model: Gives the normalization, the temperature and the number of classes.
            buckets: Sizes to pad batches to, in increasing order.
        """
        self._buckets = buckets
        self._classes = len(model.classes)
        self._temperature = model.temperature.value if model.temperature else 1.0
        scale = 1 / (255 * np.asarray(model.normalisation.std, dtype=np.float64))
        shift = np.asarray(model.normalisation.mean) / np.asarray(model.normalisation.std)
        self._scale, self._shift = _image_of(scale), _image_of(shift)

    def assemble(self, images: Sequence[Image]) -> Inputs:
        """(pixel / 255 - mean) / std for each image, padded with zeros to a bucket."""
        bucket = next(bucket for bucket in self._buckets if bucket >= len(images))
        inputs = np.zeros((bucket, 3, SIDE, SIDE), dtype=np.float32)
        normalized = np.stack(images).astype(np.float32)
        normalized *= self._scale
        normalized -= self._shift
        inputs[: len(images)] = normalized.transpose(0, 3, 1, 2)
        return inputs

    def probabilities(self, logits: Rows) -> Rows:
        """The softmax of each row of logits, with the model's temperature."""
        return _softmax(logits / self._temperature)

    def check_rows(self, rows: Rows) -> list[Probabilities | Exception]:
        """Each row of probabilities, or BadRow in its place."""
        has_shape = rows.shape[1:] == (self._classes,)
        finite = np.isfinite(rows).all(axis=1) if has_shape else np.zeros(len(rows), dtype=bool)
        return [
            row if good else BadRow("the network's output is not one finite number a class")
            for row, good in zip(rows, finite, strict=True)
        ]


def buckets(max_batch_size: int, few: bool = False) -> list[int]:
    """1, 2, 4, 8, ... and `max_batch_size` itself.

    Args:
        max_batch_size: The largest bucket.
        few: Every second power of two only, where each bucket takes much memory.
    """
    powers = [1 << power for power in range(0, max_batch_size.bit_length(), 1 + few)]
    return sorted({*powers, max_batch_size})


def noise(count: int) -> Image:
    """uint8 (count, 32, 32, 3): random pixels, always the same."""
    pixels: Image = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return pixels


def _image_of(channels: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Repeats three numbers for each pixel: broadcasting over three channels is slower."""
    return np.tile(channels.astype(np.float32), (SIDE, SIDE, 1))


def _softmax(logits: Rows) -> Rows:
    with np.errstate(invalid="ignore"):  # `check_rows` reports what is not finite
        exponentials: Rows = np.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
