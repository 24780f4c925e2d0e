"""Batches are decided by the recipe and the number of the step."""

from __future__ import annotations

import numpy as np
import pytest

from model_store.training.batches import Batches, Place
from model_store.training.cifar10 import Split
from model_store.training.recipe import Recipe

LABELS = np.arange(10).repeat(3)
SPLIT = Split(
    np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8),
    LABELS,
)


def of(**values: object) -> Batches:
    return Batches(Recipe(batch_size=8, epochs=6, **values), SPLIT)  # type: ignore[arg-type]


def epoch(batches: Batches, number: int) -> set[bytes]:
    steps = range(number * batches.per_epoch, (number + 1) * batches.per_epoch)
    return {batches.at(step).images.tobytes() for step in steps}


def test_sizes() -> None:
    """An epoch has whole batches only; targets are the labels of the images."""
    batches = of()
    assert (batches.per_epoch, batches.steps) == (3, 18)
    batch = batches.at(0)
    assert batch.images.shape == (8, 32, 32, 3) and batch.images.dtype == np.uint8
    assert batch.targets.shape == (8, 10) and set(batch.targets.ravel()) == {0.0, 1.0}
    assert batch.place is None
    with pytest.raises(ValueError, match="--batch-size"):
        Batches(Recipe(batch_size=31), SPLIT)


def test_a_step_decides() -> None:
    """The same step has the same batch, another step, epoch or seed another one."""
    again = {of(seed=seed).at(step).images.tobytes() for seed in (1, 2) for step in (0, 1, 3)}
    assert len(again) == 6
    assert of(seed=1).at(3).images.tobytes() in again


def test_batches_of_an_epoch_vary_apart() -> None:
    """Equal images are augmented in another way in each batch."""
    same = Split(SPLIT.images[:1].repeat(30, axis=0), LABELS)
    batches = Batches(Recipe(batch_size=8, epochs=1), same)
    assert len({batches.at(step).images.tobytes() for step in range(3)}) == 3


def test_every_image_once() -> None:
    """Within an epoch, no image comes twice."""
    batches = of()
    targets = np.concatenate([batches.at(step).targets for step in range(3)])
    assert (targets.sum(axis=0) <= 3).all() and targets.sum() == 24


def test_views_come_again() -> None:
    """With two views, the images of the first epoch come again in the third, in another order, and
    their place says so; runs of other seeds see the same images."""
    batches, other = of(views=2, mixup=0.2, zoom=0.2), of(views=2, mixup=0.2, zoom=0.2, seed=2)
    assert epoch(batches, 0) == epoch(batches, 2) == epoch(batches, 4) == epoch(other, 0)
    assert epoch(batches, 0).isdisjoint(epoch(batches, 1))
    by_place = {batches.at(step).place: batches.at(step).images.tobytes() for step in range(6)}
    assert by_place.keys() == {Place(32, view, number) for view in (0, 1) for number in (0, 1, 2)}
    for step in range(6, 18):
        batch = batches.at(step)
        assert batch.images.tobytes() == by_place[batch.place]
    orders = [[b.at(step).place for step in range(18)] for b in (batches, other)]
    assert orders[0] != orders[1]


def test_a_place_names_the_size() -> None:
    """Small crops of a view are other images than whole ones."""
    batches = of(views=2, small=0.5)
    first, last = batches.at(0), batches.at(17)
    assert first.place is not None and first.place.side == first.images.shape[1] == 24
    assert last.place is not None and last.place.side == last.images.shape[1] == 32


def test_mixed() -> None:
    """With mixup, images have shares of two classes."""
    batch = of(mixup=1.0).at(0)
    assert batch.images.dtype == np.float32
    np.testing.assert_allclose(batch.targets.sum(axis=1), 1, rtol=1e-6)
    assert ((batch.targets > 0) & (batch.targets < 1)).any()
