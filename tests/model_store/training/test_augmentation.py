"""Augmentation keeps what an image shows, varies the rest, and is decided by its seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from model_store.training import cifar10
from model_store.training.augmentation import GRAY, PADDING, augment, mix_up
from model_store.training.cifar10 import SIDE
from model_store.training.recipe import Recipe

PLAIN = Recipe()
PHOTO = Recipe(zoom=0.3, color=0.2, sharpness=1.0, cutout=4)


@pytest.fixture
def images() -> cifar10.Images:
    return np.random.default_rng(1).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


def spread(crops: cifar10.Images) -> float:
    """Standard deviation of the pixels of an image, mean over images."""
    return float(crops.astype(np.float64).std(axis=(1, 2, 3)).mean())


def test_augment_moves_and_mirrors(images: cifar10.Images) -> None:
    """Each image is a window of itself on black, as it was or mirrored."""
    moved = augment(images, PLAIN, SIDE, np.random.default_rng(3))
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
    many = augment(np.repeat(images[:1], 3000, axis=0), PLAIN, SIDE, np.random.default_rng(4))
    assert len({image.tobytes() for image in many}) == 2 * (2 * PADDING + 1) ** 2


def test_augment_small(images: cifar10.Images) -> None:
    """A smaller crop is a window of the image itself; each of them occurs, mirrored or not."""
    side = SIDE - 2
    crops = augment(np.repeat(images[:1], 500, axis=0), PLAIN, side, np.random.default_rng(5))
    windows = {
        turned[top : top + side, left : left + side].tobytes()
        for turned in (images[0], images[0][:, ::-1])
        for top in range(3)
        for left in range(3)
    }
    assert {crop.tobytes() for crop in crops} == windows


def test_cutout() -> None:
    """A gray square, whole or cut by an edge, is blanked in each image; any pixel can be in it."""
    white = np.full((2000, SIDE, SIDE, 3), 255, dtype=np.uint8)
    crops = augment(white, Recipe(cutout=8), SIDE - 2, np.random.default_rng(6))
    blanked = (crops == GRAY).all(axis=3)
    assert (blanked | (crops == 255).all(axis=3)).all()
    assert blanked.any(axis=0).all()
    rows, columns = blanked.any(axis=2).sum(axis=1), blanked.any(axis=1).sum(axis=1)
    assert (blanked.sum(axis=(1, 2)) == rows * columns).all(), "not one rectangle"
    assert set(rows) == set(columns) == {4, 5, 6, 7, 8}


def spread_along(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation of the positions of each row, weighted."""
    places = np.arange(weights.shape[1])
    means = (weights * places).sum(axis=1, keepdims=True)
    deviations: npt.NDArray[np.float64] = np.sqrt((weights * (places - means) ** 2).sum(axis=1))
    return deviations


@pytest.mark.parametrize("recipe", [PLAIN, PHOTO])
@pytest.mark.parametrize("side", [24, SIDE])
def test_augment_is_repeatable(images: cifar10.Images, recipe: Recipe, side: int) -> None:
    """The same generator gives the same images, of the size that was asked for."""
    first, second = (augment(images, recipe, side, np.random.default_rng((7, 1))) for _ in range(2))
    assert first.dtype == np.uint8 and first.shape == (6, side, side, 3)
    assert np.array_equal(first, second)


def test_zoom_varies_the_size() -> None:
    """A round spot has from exp(-zoom) to exp(zoom) times its diameter, and is oval at times."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    spot = (255 * np.exp((rows**2 + columns**2) / -18)).astype(np.uint8)
    many = spot[None, :, :, None].repeat(400, axis=0).repeat(3, axis=3)

    crops = augment(many, Recipe(zoom=0.15), SIDE, np.random.default_rng(8))[..., 0]

    area = crops.sum(axis=(1, 2)) / spot.sum()
    assert area.min() == pytest.approx(np.exp(-0.3), rel=0.03)
    assert area.max() == pytest.approx(np.exp(0.3), rel=0.03)
    weights = crops / crops.sum(axis=(1, 2), keepdims=True)
    width, height = (spread_along(weights.sum(axis=axis)) for axis in (1, 2))
    most, least = np.quantile(width / height, (0.8, 0.2))
    assert 1 / least == pytest.approx(most, rel=0.02) and most > 1.03


def test_zoom_has_no_edges() -> None:
    """What lies beyond the image is its reflection: an image of one color stays of one color."""
    gray = np.full((200, SIDE, SIDE, 3), 90, dtype=np.uint8)
    for side in (24, SIDE):
        assert (augment(gray, Recipe(zoom=0.5), side, np.random.default_rng(9)) == 90).all()


def test_color_keeps_shapes(images: cifar10.Images) -> None:
    """Colors change by no more than the recipe says; every pixel of a color changes alike."""
    two = np.full((300, SIDE, SIDE, 3), (60, 90, 120), dtype=np.uint8)
    two[:, :, : SIDE // 2] = (140, 110, 80)
    changed = augment(two, Recipe(color=0.2), 24, np.random.default_rng(10)).astype(int)
    assert all(len(np.unique(image.reshape(-1, 3), axis=0)) <= 2 for image in changed)
    assert changed.std(axis=0).max() > 5
    assert 100 * 0.7 < changed.mean(axis=(1, 2, 3)).min() < 90
    assert 110 < changed.mean(axis=(1, 2, 3)).max() < 100 * 1.4


def test_color_changes_saturation() -> None:
    """Red becomes paler by more than contrast and the balance of the colors can make it."""
    red = np.full((300, SIDE, SIDE, 3), (220, 60, 60), dtype=np.uint8)
    changed = augment(red, Recipe(color=0.2), 24, np.random.default_rng(14)).astype(int)
    assert (changed[..., 0] - changed[..., 1]).min() < 100


def test_sharpness_blurs_and_sharpens(images: cifar10.Images) -> None:
    """Noise of low contrast loses or gains contrast; a plain image stays as it is."""
    noise = 118 + images // 14
    many = np.repeat(noise[:1], 300, axis=0)
    sharpened = augment(many, Recipe(sharpness=1.0), 24, np.random.default_rng(11))
    before, after = spread(many), sharpened.astype(np.float64).std(axis=(1, 2, 3))
    assert after.min() < 0.6 * before and after.max() > 1.4 * before
    plain = np.full_like(many, 77)
    assert (augment(plain, Recipe(sharpness=1.0), 24, np.random.default_rng(12)) == 77).all()


def test_mix_up(images: cifar10.Images) -> None:
    """Images and labels are blended by the same shares, the image itself by half or more."""
    targets = np.eye(6, dtype=np.float32)
    mixed, shares = mix_up(images, targets, 0.5, np.random.default_rng(13))
    assert mixed.dtype == shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert (shares.diagonal() >= 0.5).all() and (shares.diagonal() < 0.999).any()
    expected = np.tensordot(shares, images.astype(np.float32), 1)
    np.testing.assert_allclose(mixed, expected, atol=1e-3)
