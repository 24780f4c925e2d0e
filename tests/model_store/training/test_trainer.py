"""A step learns from labels and teachers as the recipe says."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from model_store.training import cifar10
from model_store.training.batches import Batches
from model_store.training.checkpoint import Origin
from model_store.training.recipe import Recipe
from model_store.training.teacher import Version, read_version
from model_store.training.trainer import Trainer

pytestmark = [
    pytest.mark.mxnet,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
SPLIT = cifar10.Split(
    np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 10
)
NONE = cifar10.Split(SPLIT.images[:0], SPLIT.labels[:0])


@pytest.fixture(scope="module")
def teacher(model: pathlib.Path) -> Version:
    return read_version(model.parents[1], f"{model.parent.name}/{model.name}")


def trainer(teachers: list[Version], **values: Any) -> Trainer:
    recipe = Recipe(batch_size=8, epochs=1, mixup=0.5, zoom=0.2, **values)
    batches = Batches(recipe, SPLIT)
    return Trainer(Origin(recipe, "data", threads=1), "cpu", batches, teachers=teachers)


def log_softmax(logits: Any) -> Any:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def losses(made: Trainer) -> tuple[Any, Any, Any]:
    """Of the first step: losses, the network's logits, and the shares of the classes."""
    batch = made.batches.at(0)
    values, logits = made._step(batch)
    return values.asnumpy(), logits.asnumpy(), batch.targets


def test_loss_of_labels() -> None:
    """Without a teacher, the loss is the cross entropy with the shares of mixed labels."""
    values, logits, targets = losses(trainer([]))
    np.testing.assert_allclose(values, -(targets * log_softmax(logits)).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_loss_of_a_teacher(teacher: Version, weight: float) -> None:
    """The teacher sees the images that the network sees, mixed alike. Its share of the loss is the
    divergence at the temperature, times the temperature's square."""
    made = trainer([teacher], teacher_weight=weight, temperature=3.0)
    values, logits, targets = losses(made)
    inputs = made._to_device(made.batches.at(0).images)
    assert made._teachers is not None
    taught = log_softmax(made._teachers.logits(None, inputs) / 3)
    divergence = 9 * (np.exp(taught) * (taught - log_softmax(logits / 3))).sum(axis=1)
    labels = -(targets * log_softmax(logits)).sum(axis=1)
    expected = weight * divergence + (1 - weight) * labels
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_teaches(teacher: Version) -> None:
    """A network that only follows its teacher comes closer to it; labels play no part."""
    made = trainer([teacher], teacher_weight=1.0, learning_rate=0.02, warm_up=0.0)
    before = losses(made)[0].mean()
    for _ in range(8):
        after = losses(made)[0].mean()
    assert after < 0.8 * before


def test_held_out_images_are_measured() -> None:
    """After an epoch, the accuracy on held-out images is recorded; without any, None is."""
    measured = [list(trainer([]).run(split))[-1].epochs[0] for split in (SPLIT, NONE)]
    assert measured[0].held_out_accuracy is not None and measured[1].held_out_accuracy is None
