"""Batch: converts images to a neural network's input, and its logits to probabilities.

This module uses NumPy only and is independent of the library that runs the network. A batch is
padded to the next bucket. The buckets are the sizes 1, 2, 4, 8 and so on, up to the largest batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from model_store.manifest import Manifest

SIDE = 32
"""Height and width of an image in pixels."""

Image: TypeAlias = npt.NDArray[np.uint8]
"""Pixels of one image: uint8 (32, 32, 3), in the order height, width, channel (RGB)."""
Probabilities: TypeAlias = npt.NDArray[np.float32]
"""Probabilities of one image: float32 (classes,), not negative, with the sum 1."""
Inputs: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""Images of a padded batch: normalized float32 (bucket, 3, 32, 32), or uint8 (bucket, 32, 32, 3)
for a network that normalizes the pixels itself."""
Rows: TypeAlias = npt.NDArray[np.float32]
"""Logits or probabilities of a padded batch: float32 (bucket, classes)."""

R = TypeVar("R")


class BadRow(ArithmeticError):
    """The network's output for an image has a wrong shape, or contains NaN or infinity."""


class Results(list[R]):
    """The results of a batch, one for each image in order, and the time of their computation."""

    def __init__(self, results: Iterable[R], computed_at: float) -> None:
        """
        Args:
            results: One result for each image of the batch.
            computed_at: Time by `time.monotonic` at which the results were computed. This is
                earlier than the time at which a busy event loop receives the results.
        """
        super().__init__(results)
        self.computed_at = computed_at


class BatchFormat:
    """Converts the input and the output of one version's network."""

    def __init__(
        self, model: Manifest, buckets: Sequence[int], network_normalizes: bool = False
    ) -> None:
        """
        Args:
            model: Manifest with the normalization, the temperature and the classes.
            buckets: Sizes that batches are padded to, in increasing order.
            network_normalizes: Whether the network normalizes the pixels itself.
        """
        self._network_normalizes = network_normalizes
        self._buckets = buckets
        self._classes = len(model.classes)
        self._temperature = model.temperature.value if model.temperature else 1.0
        scale = 1 / (255 * np.asarray(model.normalisation.std, dtype=np.float64))
        shift = np.asarray(model.normalisation.mean) / np.asarray(model.normalisation.std)
        self._scale, self._shift = _image_of(scale), _image_of(shift)

    def assemble(self, images: Sequence[Image]) -> Inputs:
        """Return the network's input, padded with zeros to a bucket.

        The input contains pixels or, if the network does not normalize, (pixel / 255 - mean) / std.
        """
        bucket = next(bucket for bucket in self._buckets if bucket >= len(images))
        if self._network_normalizes:
            pixels = np.zeros((bucket, SIDE, SIDE, 3), dtype=np.uint8)
            np.stack(images, out=pixels[: len(images)])
            return pixels
        inputs = np.zeros((bucket, 3, SIDE, SIDE), dtype=np.float32)
        normalized = np.stack(images).astype(np.float32)
        normalized *= self._scale
        normalized -= self._shift
        inputs[: len(images)] = normalized.transpose(0, 3, 1, 2)
        return inputs

    def probabilities(self, logits: Rows) -> Rows:
        """Return the softmax of each row of logits, with the model's temperature."""
        return _softmax(logits / self._temperature)

    def check_rows(self, rows: Rows) -> list[Probabilities | Exception]:
        """Return the rows of probabilities, with BadRow in place of each invalid row."""
        has_shape = rows.shape[1:] == (self._classes,)
        finite = np.isfinite(rows).all(axis=1) if has_shape else np.zeros(len(rows), dtype=bool)
        return [
            row if good else BadRow("the network's output is not one finite number for each class")
            for row, good in zip(rows, finite, strict=True)
        ]


def buckets(max_batch_size: int, few: bool = False) -> list[int]:
    """Return the buckets 1, 2, 4, 8 and so on, and `max_batch_size`.

    Args:
        max_batch_size: The largest bucket.
        few: Whether to use only every second power of two, which saves memory.
    """
    powers = [1 << power for power in range(0, max_batch_size.bit_length(), 1 + few)]
    return sorted({*powers, max_batch_size})


def noise(count: int) -> Image:
    """Return `count` images of random pixels, which are the same in every call."""
    pixels: Image = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return pixels


def _image_of(channels: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Tile one value per channel to the shape of an image, which is faster than broadcasting it."""
    return np.tile(channels.astype(np.float32), (SIDE, SIDE, 1))


def _softmax(logits: Rows) -> Rows:
    with np.errstate(invalid="ignore"):  # `check_rows` reports rows that are not finite
        exponentials: Rows = np.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials
