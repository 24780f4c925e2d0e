"""CIFAR-10's binary layout, and augmentation that is decided by its seed."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from model_store.training import cifar10
from model_store.training.cifar10 import PADDING, SIDE, BadDataset, Split, augment, fingerprint


def record(label: int, image: cifar10.Images) -> bytes:
    """A record as https://www.cs.toronto.edu/~kriz/cifar.html describes it."""
    return bytes([label]) + image.transpose(2, 0, 1).tobytes()


@pytest.fixture
def images() -> cifar10.Images:
    return np.random.default_rng(1).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


def test_layout(tmp_path: pathlib.Path, images: cifar10.Images) -> None:
    """Labels and pixels come out in file order, colours last."""
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
    ("content", "told"),
    [
        (None, "cifar-10-binary.tar.gz"),
        (b"", "whole number"),
        (bytes(cifar10.RECORD - 1), "whole number"),
        (b"\x0a" + bytes(cifar10.RECORD - 1), "label above 9"),
    ],
)
def test_other_files(tmp_path: pathlib.Path, content: bytes | None, told: str) -> None:
    """A missing or foreign file is named, with where to get the right one."""
    if content is not None:
        (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(BadDataset, match=told) as caught:
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
    """The same data have the same; other pixels, other labels or another division have another."""
    train, test = Split(images[:4], LABELS[0]), Split(images[4:], LABELS[1])
    again = Split(images[:4].copy(), LABELS[0].copy())
    assert fingerprint(train, test) == fingerprint(again, test)
    assert fingerprint(train, test) != fingerprint(*change(train, test))


def test_augment_moves_and_mirrors(images: cifar10.Images) -> None:
    """Each image is a window of itself on black, as it was or mirrored."""
    moved = augment(images, np.random.default_rng(3))
    assert moved.dtype == np.uint8 and moved.shape == images.shape and moved.flags.c_contiguous
    edge = ((PADDING, PADDING), (PADDING, PADDING), (0, 0))
    for before, after in zip(images, moved, strict=True):
        windows = [
            np.pad(turned, edge)[top : top + SIDE, left : left + SIDE]
            for turned in (before, before[:, ::-1])
            for top in range(2 * PADDING + 1)
            for left in range(2 * PADDING + 1)
        ]
        assert any(np.array_equal(after, window) for window in windows)


def test_augment_covers_every_move(images: cifar10.Images) -> None:
    """All 2 x 9 x 9 outcomes occur: none of the moves or mirrors is lost."""
    many = augment(np.repeat(images[:1], 3000, axis=0), np.random.default_rng(4))
    assert len({image.tobytes() for image in many}) == 2 * (2 * PADDING + 1) ** 2


def test_augment_small(images: cifar10.Images) -> None:
    """A smaller crop is a window of the image itself; each of them occurs, mirrored or not."""
    side = SIDE - 2
    crops = augment(np.repeat(images[:1], 500, axis=0), np.random.default_rng(5), side)
    windows = {
        turned[top : top + side, left : left + side].tobytes()
        for turned in (images[0], images[0][:, ::-1])
        for top in range(3)
        for left in range(3)
    }
    assert {crop.tobytes() for crop in crops} == windows


def test_cutout() -> None:
    """A grey square, whole or cut by an edge, is blanked in each image; any pixel can be in it."""
    white = np.full((2000, SIDE, SIDE, 3), 255, dtype=np.uint8)
    crops = augment(white, np.random.default_rng(6), SIDE - 2, cutout=8)
    blanked = (crops == cifar10.GREY).all(axis=3)
    assert (blanked | (crops == 255).all(axis=3)).all()
    assert blanked.any(axis=0).all()
    rows, columns = blanked.any(axis=2).sum(axis=1), blanked.any(axis=1).sum(axis=1)
    assert (blanked.sum(axis=(1, 2)) == rows * columns).all(), "not one rectangle"
    assert set(rows) == set(columns) == {4, 5, 6, 7, 8}


def test_augment_is_repeatable(images: cifar10.Images) -> None:
    first, second = (augment(images, np.random.default_rng((7, 0, 1))) for _ in range(2))
    assert np.array_equal(first, second)
