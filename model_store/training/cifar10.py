"""CIFAR-10: reads the data set in its official binary version.

The folder of the data set contains `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`,
unpacked from `cifar-10-binary.tar.gz` of https://www.cs.toronto.edu/~kriz/cifar.html. Each image is
a record of one label byte and 3,072 pixel bytes: 1,024 for red, 1,024 for green and 1,024 for blue.
The pixels of each color are stored row by row.
"""

from __future__ import annotations

import hashlib
import pathlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_store.files import read_regular

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of each channel's pixels, on a scale from 0 to 1. Networks are trained with these values."""
STD = (0.2023, 0.1994, 0.2010)
"""Standard deviation of each channel's pixels, on a scale from 0 to 1. Networks are trained with
these values."""
SIDE = 32
"""Width and height of an image in pixels."""
RECORD = 1 + 3 * SIDE * SIDE
"""Size of a record in bytes."""
MAX_BYTES = 2**30
"""Maximum size of a file in bytes."""

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class BadDataset(Exception):
    """A file of CIFAR-10 is missing or damaged. The message names the file."""


@dataclass(frozen=True)
class Split:
    """Images with their labels, in the order of the files."""

    images: Images
    """uint8 (n, 32, 32, 3), RGB."""
    labels: Labels
    """int64 (n,), indices of `CLASSES`."""


def read_train(folder: pathlib.Path) -> Split:
    """Read the images of the five training files, in order. Raises BadDataset."""
    return _read([folder / f"data_batch_{number}.bin" for number in range(1, 6)])


def read_test(folder: pathlib.Path) -> Split:
    """Read the images of the test file. Raises BadDataset."""
    return _read([folder / "test_batch.bin"])


def fingerprint(*splits: Split) -> str:
    """Return a SHA-256 of all labels and pixels of the splits, in hexadecimal."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.labels, split.images):
            digest.update(hashlib.sha256(array.tobytes()).digest())
    return digest.hexdigest()


def held_out(split: Split, count: int) -> tuple[Split, Split]:
    """Divide a split into the images to train on and the last `count` images.

    Raises:
        ValueError: No image remains for training.
    """
    rest = len(split.images) - count
    if rest <= 0:
        raise ValueError(
            f"--held-out {count} must be below the number of training images, {len(split.images)}"
        )
    return (
        Split(split.images[:rest], split.labels[:rest]),
        Split(split.images[rest:], split.labels[rest:]),
    )


def _read(paths: list[pathlib.Path]) -> Split:
    parts = [_records(path) for path in paths]
    records = np.concatenate(parts)
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64))


def _records(path: pathlib.Path) -> Images:
    try:
        data = np.frombuffer(read_regular(path, MAX_BYTES), dtype=np.uint8)
    except OSError as error:
        raise BadDataset(
            f"{path}: {error.strerror}. Download cifar-10-binary.tar.gz from "
            "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and pass its folder as --data"
        ) from error
    if data.size == 0 or data.size % RECORD:
        raise BadDataset(
            f"{path}: the file has {data.size} bytes, which is not a whole number of "
            f"{RECORD}-byte records"
        )
    records = data.reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise BadDataset(
            f"{path}: the file has a label above 9, so it is not CIFAR-10's binary version"
        )
    return records
