"""The comparison of backends: what is measured, and the table."""

from __future__ import annotations

import asyncio
import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import side_by_side
from benchmarks.answers import compare
from benchmarks.backends import compared, measure, table
from benchmarks.served import OPENVINO, Served, Start, all_served, openvino_hidden, start
from model_store import backends, versions
from model_store.engine import load_engine
from model_store.training import cifar10

FIRST, OTHER = Served("mxnet", "int8"), Served("onnxruntime", "int8", openvino=True)


def test_openvino_hidden_only_within_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards, OpenVINO is as it was before."""
    loaded = type(sys)(OPENVINO)
    loaded.__spec__ = importlib.util.spec_from_loader(OPENVINO, None)
    monkeypatch.setitem(sys.modules, OPENVINO, loaded)
    with openvino_hidden(False):
        assert importlib.util.find_spec(OPENVINO) is not None
    with openvino_hidden(True):
        assert importlib.util.find_spec(OPENVINO) is None
    assert sys.modules[OPENVINO] is loaded


def test_all_served_has_every_installed_backend(shipped: pathlib.Path) -> None:
    """The preferred backend is the first one in each precision."""
    found = all_served(versions.read_manifest(shipped))
    for precision in ("fp32", "int8"):
        names = [one.backend for one in found if one.precision == precision and not one.openvino]
        assert names == backends.installed()


def test_table_compares_with_the_first_backend_in_the_same_precision() -> None:
    """A machine that becomes half as fast for all changes no ratio."""
    rates = {
        Served("mxnet", "fp32"): {1: [500.0, 250.0]},
        FIRST: {1: [1000.0, 500.0]},
        OTHER: {1: [1500.0, 750.0]},
    }
    assert compared(rates, OTHER)[1].mean == 1.5
    rows = table(rates, {one: Start(1.234, 0.5, 99.6) for one in rates}, {}).splitlines()
    assert rows[2] == "| mxnet fp32 | 375, 1.00 (0.00) | 1.23 | 0.50 | 100 |"
    assert rows[4] == (
        "| onnxruntime with OpenVINO int8 | 1,125, 1.50 (0.00) | 1.23 | 0.50 | 100 |"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
def test_measure_and_start(shipped: pathlib.Path) -> None:
    """Each backend has one rate for each round and batch size, and a start in its own process."""
    served = [one for one in all_served(versions.read_manifest(shipped)) if one.precision == "fp32"]
    rates, answers = asyncio.run(measure(shipped, served, [1, 4], 2, None))
    assert list(rates) == served and not answers
    for by_size in rates.values():
        assert {size: len(own) for size, own in by_size.items()} == {1: 2, 4: 2}
        assert all(rate > 0 for own in by_size.values() for rate in own)
    found = start(shipped, served[-1])
    assert found.cpu > 0 and found.seconds > 0 and 30 < found.memory < 4000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
async def test_answers_are_compared_with_numpy(shipped: pathlib.Path) -> None:
    """An engine in fp32 gives the same classes as the NumPy reference."""
    images = np.random.default_rng(1).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    test = cifar10.Split(images, np.zeros(60, np.int64))
    async with load_engine(shipped, "cpu", 1, 64, "fp32") as engine:
        (found,) = (await compare(shipped, {FIRST: engine}, test)).values()
    assert (found.images, found.same_class, found.difference) == (60, 1, 0)
    assert found.same_class_as_numpy == 1 and found.difference_to_numpy < 1e-4


def test_side_by_side_offers_every_installed_backend() -> None:
    """Each backend can be compared over HTTP in both precisions."""
    for backend in backends.installed():
        for precision in ("fp32", "int8"):
            environment = side_by_side.BY_NAME[f"{backend} in {precision}"].environment
            assert environment["SHOAL_BACKEND"] == backend
            assert environment["SHOAL_PRECISION"] == precision
