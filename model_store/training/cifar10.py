"""CIFAR-10 in its official binary layout, read with NumPy.

`DIR` holds `data_batch_1.bin` .. `data_batch_5.bin` and `test_batch.bin`, as unpacked from
`cifar-10-binary.tar.gz` of https://www.cs.toronto.edu/~kriz/cifar.html. A record is one label
byte and 3,072 pixel bytes: 1,024 red, 1,024 green, 1,024 blue, each row by row.
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
STD = (0.2023, 0.1994, 0.2010)
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
MAX_BYTES = 2**30

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class BadDataset(Exception):
    """A file of CIFAR-10 is missing or damaged; the message names it and where to get it."""


@dataclass(frozen=True)
class Split:
    """`images` uint8 (n, 32, 32, 3) RGB and `labels` int64 (n,), in file order."""

    images: Images
    labels: Labels


def read_train(folder: pathlib.Path) -> Split:
    """The five training files, one after the other. Raises BadDataset."""
    return _read([folder / f"data_batch_{number}.bin" for number in range(1, 6)])


def read_test(folder: pathlib.Path) -> Split:
    """The test file. Raises BadDataset."""
    return _read([folder / "test_batch.bin"])


def fingerprint(*splits: Split) -> str:
    """SHA-256 of every label and pixel, in order and by split."""
    digest = hashlib.sha256()
    for split in splits:
        for array in (split.labels, split.images):
            digest.update(hashlib.sha256(array.tobytes()).digest())
    return digest.hexdigest()


def held_out(split: Split, count: int) -> tuple[Split, Split]:
    """All images but the last `count`, and the last `count`.

    Raises ValueError if no image remains for training.
    """
    rest = len(split.images) - count
    if rest <= 0:
        raise ValueError(f"--held-out {count} leaves none of {len(split.images)} training images")
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
            "https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and name its folder"
        ) from error
    if data.size == 0 or data.size % RECORD:
        raise BadDataset(f"{path}: {data.size} bytes, not a whole number of {RECORD}-byte records")
    records = data.reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise BadDataset(f"{path}: a label above 9; this is not CIFAR-10's binary version")
    return records
