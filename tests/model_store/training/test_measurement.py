"""Measuring a version through the engine that serves it."""

from __future__ import annotations

import asyncio
import pathlib

import numpy as np
import pytest

from model_store import backends, probes, versions
from model_store.precision import is_offered
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
    measured = asyncio.run(measurement.evaluate(model, test, "cpu", 1, done=told.append))
    found = measured.evaluation
    assert told == [64, 6] and found.images == 70
    assert measured.precision.name == "fp32"
    assert measured.backend.name == backends.installed()[0]
    shares = [share for share in found.by_class.values() if share is not None]
    assert found.accuracy == pytest.approx(sum(shares) / 10)


@pytest.mark.parametrize("backend", backends.installed())
def test_evaluate_uses_the_backend_that_is_named(model: pathlib.Path, backend: str) -> None:
    """The result names the backend, and says that it was requested."""
    test = cifar10.Split(probes.images(), np.zeros(4, np.int64))
    measured = asyncio.run(measurement.evaluate(model, test, "cpu", 1, "fp32", backend))
    assert (measured.backend.name, measured.backend.reason) == (backend, "as requested")


def test_outputs(shipped: pathlib.Path) -> None:
    """Every installed backend computes in every precision that the version has; without a GPU the
    ONNX file in fp16 is computed on the CPU, and fp16 with MXNet is left out."""
    manifest = versions.read_manifest(shipped)
    sets = [probes.images(), probes.images()[:2]]
    found = asyncio.run(measurement.outputs(shipped, sets, "cpu", 1))
    assert set(found) == {
        (backend, precision)
        for backend in backends.installed()
        for precision in measurement.PRECISIONS
        if is_offered(precision, manifest, backend) and (backend, precision) != ("mxnet", "fp16")
    }
    for (backend, precision), (rows, fewer) in found.items():
        recorded = np.array(manifest.recorded_probes(precision, backend))
        assert np.abs(rows - recorded).max() < probes.MAX_DIFFERENCE[precision]
        assert fewer.shape == (2, 10)
