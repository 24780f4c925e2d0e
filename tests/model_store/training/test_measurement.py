"""Measuring a version through the engine that serves it."""

from __future__ import annotations

import asyncio
import pathlib

import numpy as np
import pytest

from model_store.training import cifar10, measurement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]


def test_evaluate(model: pathlib.Path) -> None:
    """Accuracy by class and overall, and how far it has come is told on the way."""
    random = np.random.default_rng(1)
    labels = np.arange(70, dtype=np.uint8) % 10
    test = cifar10.Split(random.integers(0, 256, (70, 32, 32, 3), np.uint8), labels)
    told: list[int] = []
    found, precision = asyncio.run(measurement.evaluate(model, test, "cpu", 1, done=told.append))
    assert told == [64, 6] and found.images == 70
    assert precision.name == "fp32"
    shares = [share for share in found.by_class.values() if share is not None]
    assert found.accuracy == pytest.approx(sum(shares) / 10)
