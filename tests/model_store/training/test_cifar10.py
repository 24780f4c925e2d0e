"""CIFAR-10's binary layout."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from model_store.training import cifar10
from model_store.training.cifar10 import SIDE, BadDataset, Split, fingerprint


def record(label: int, image: cifar10.Images) -> bytes:
    """A record as https://www.cs.toronto.edu/~kriz/cifar.html describes it."""
    return bytes([label]) + image.transpose(2, 0, 1).tobytes()


@pytest.fixture
def images() -> cifar10.Images:
    return np.random.default_rng(1).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


def test_layout(tmp_path: pathlib.Path, images: cifar10.Images) -> None:
    """Labels and images are in file order, and colors are the last axis."""
    for number in range(1, 6):
        part = images[number - 1 : number]
        (tmp_path / f"data_batch_{number}.bin").write_bytes(record(number, part[0]))
    (tmp_path / "test_batch.bin").write_bytes(record(9, images[5]))

    train, test = cifar10.read_train(tmp_path), cifar10.read_test(tmp_path)

    assert train.labels.tolist() == [1, 2, 3, 4, 5]
    assert np.array_equal(train.images, images[:5])
    assert test.labels.tolist() == [9]
    assert np.array_equal(test.images, images[5:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cifar-10-binary.tar.gz"),
        (b"", "whole number"),
        (bytes(cifar10.RECORD - 1), "whole number"),
        (b"\x0a" + bytes(cifar10.RECORD - 1), "label above 9"),
    ],
)
def test_other_files(tmp_path: pathlib.Path, content: bytes | None, message: str) -> None:
    """The error names a missing or foreign file, and where to get the right one."""
    if content is not None:
        (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(BadDataset, match=message) as caught:
        cifar10.read_test(tmp_path)
    assert "test_batch.bin" in str(caught.value)


def _another_pixel(train: Split, test: Split) -> tuple[Split, Split]:
    images = train.images.copy()
    images[-1, -1, -1, -1] ^= 1
    return Split(images, train.labels), test


def _another_label(train: Split, test: Split) -> tuple[Split, Split]:
    return train, Split(test.images, (test.labels + 1) % 10)


def _moved_over(train: Split, test: Split) -> tuple[Split, Split]:
    images, labels = (np.concatenate([a, b]) for a, b in ((train.images, test.images), LABELS))
    return Split(images[:3], labels[:3]), Split(images[3:], labels[3:])


LABELS = (np.arange(4), np.arange(4, 6))


@pytest.mark.parametrize("change", [_another_pixel, _another_label, _moved_over])
def test_fingerprint(
    images: cifar10.Images, change: Callable[[Split, Split], tuple[Split, Split]]
) -> None:
    """Equal data have equal fingerprints; other pixels, labels or splits have other ones."""
    train, test = Split(images[:4], LABELS[0]), Split(images[4:], LABELS[1])
    again = Split(images[:4].copy(), LABELS[0].copy())
    assert fingerprint(train, test) == fingerprint(again, test)
    assert fingerprint(train, test) != fingerprint(*change(train, test))


def test_held_out(images: cifar10.Images) -> None:
    """The last images are held out, the others stay; at least one must stay."""
    split = Split(images, np.arange(6))
    train, held_out = cifar10.held_out(split, 2)
    assert (train.labels.tolist(), held_out.labels.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert np.array_equal(np.concatenate([train.images, held_out.images]), images)
    assert len(cifar10.held_out(split, 0)[1].images) == 0
    with pytest.raises(ValueError, match="--held-out 6"):
        cifar10.held_out(split, 6)
