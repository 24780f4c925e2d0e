"""Versions that can be teachers, their logits, and the file that keeps the logits."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from model_store import manifest, versions
from model_store.manifest import BadModel
from model_store.mxnet.runtime import load_mxnet
from model_store.training import cifar10
from model_store.training.batches import Place
from model_store.training.recipe import Recipe
from model_store.training.teacher import Memory, Teachers, read_version
from tests.reference import MEAN, STD, probabilities

RECIPE = Recipe(batch_size=4, views=2)
PLACE = Place(side=32, view=1, number=2)


def memory(folder: pathlib.Path, recipe: Recipe = RECIPE, *sources: str) -> Memory:
    return Memory(folder, recipe, batches=3, sources=sources or ("data", "teacher"))


def rows(number: int) -> np.ndarray[Any, np.dtype[np.float16]]:
    return np.random.default_rng(number).normal(size=(4, 10)).astype(np.float16)


def test_memory_keeps_each_place(tmp_path: pathlib.Path) -> None:
    """Stored logits are read back bit for bit, also from a new object; other places are unknown."""
    first = memory(tmp_path / "new" / "folder")
    places = [
        Place(side, view, number) for side in (24, 32) for view in (0, 1) for number in (0, 2)
    ]
    for index, place in enumerate(places):
        assert first.get(place) is None
        first.put(place, rows(index))
    del first
    second = memory(tmp_path / "new" / "folder")
    for index, place in enumerate(places):
        kept = second.get(place)
        assert kept is not None and kept.dtype == np.float16
        assert np.array_equal(kept, rows(index))
    assert second.get(Place(32, 0, 1)) is None


def test_memory_of_half_a_batch(tmp_path: pathlib.Path) -> None:
    """A batch with a missing row is unknown: a killed process may have written half of it."""
    torn = rows(1)
    torn[2] = 0
    kept = memory(tmp_path)
    kept.put(PLACE, torn)
    assert kept.get(PLACE) is None


@pytest.mark.parametrize(
    ("recipe", "sources"),
    [
        (RECIPE, ("data", "another teacher")),
        (RECIPE, ("other data", "teacher")),
        (Recipe(batch_size=4, views=2, mixup=0.2), ("data", "teacher")),
        (Recipe(batch_size=4, views=2, color=0.2), ("data", "teacher")),
        (Recipe(batch_size=4, views=3), ("data", "teacher")),
    ],
)
def test_memory_of_other_images(
    tmp_path: pathlib.Path, recipe: Recipe, sources: tuple[str, str]
) -> None:
    """Other teachers, data or augmentations have another file."""
    memory(tmp_path).put(PLACE, rows(1))
    assert memory(tmp_path, recipe, *sources).get(PLACE) is None


@pytest.mark.parametrize("same", [{"seed": 2}, {"epochs": 9}, {"temperature": 1.0}])
def test_memory_is_shared(tmp_path: pathlib.Path, same: dict[str, Any]) -> None:
    """Runs that see the same views share the file."""
    memory(tmp_path).put(PLACE, rows(1))
    assert memory(tmp_path, Recipe(batch_size=4, views=2, **same)).get(PLACE) is not None


def test_other_classes_cannot_teach(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A version with other classes is rejected."""
    described = versions.read_manifest(model)
    reversed_classes = {"classes": tuple(reversed(cifar10.CLASSES)), "version": "1"}
    folder = tmp_path / described.name / "1"
    folder.mkdir(parents=True)
    (folder / "net.params").write_bytes((model / "net.params").read_bytes())
    manifest.write(folder, described.model_copy(update=reversed_classes))
    with pytest.raises(BadModel, match="differ from CIFAR-10's"):
        read_version(tmp_path, f"{described.name}/1")


@pytest.mark.mxnet
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
def test_logits(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The logits agree with the reference; two teachers give their mean; a known batch is not
    computed again."""
    mx = load_mxnet(threads=1)
    version = read_version(model.parents[1], f"{model.parent.name}/{model.name}")
    arrays = {name: array * 1 for name, array in version.arrays.items()}
    arrays["output.bias"] = arrays["output.bias"] + np.arange(10, dtype=np.float32)
    moved = type(version)(version.model, arrays)
    images = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    inputs = mx.nd.array(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2))

    one = Teachers(mx, mx.cpu(), [version]).logits(None, inputs)
    both = Teachers(mx, mx.cpu(), [version, moved], memory(tmp_path))
    two = both.logits(PLACE, inputs)

    softmax = np.exp(one.astype(np.float64))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, probabilities(version.arrays, images), atol=0.01)
    np.testing.assert_allclose(two, one + np.arange(10) / 2, atol=0.02)
    assert np.array_equal(both.logits(PLACE, inputs * 0), two)
    assert not np.array_equal(both.logits(Place(32, 0, 0), inputs * 0), two)
