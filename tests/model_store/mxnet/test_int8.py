"""Int8: almost the same results from suitable ranges, and an error for others."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from model_store import manifest, store
from model_store.engine import LaneEngine, load_engine
from model_store.manifest import BadModel
from model_store.mxnet.architectures import build
from model_store.mxnet.int8 import Quantizable
from model_store.mxnet.runtime import load_mxnet
from model_store.params import read_params
from model_store.precision import PrecisionUnavailable
from tests.reference import probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
on_the_engines_loop = pytest.mark.asyncio(loop_scope="module")

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def images() -> Any:
    coarse = np.random.default_rng(5).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def int8(calibrated: pathlib.Path) -> AsyncIterator[LaneEngine]:
    async with load_engine(calibrated, "cpu", 1, 64, "int8") as engine:
        yield engine


@on_the_engines_loop
async def test_int8_is_close_to_fp32(
    int8: LaneEngine, calibrated: pathlib.Path, images: Any
) -> None:
    """Most images get the same class as in NumPy, but not the same numbers, because they are
    quantized."""
    temperature = manifest.read(calibrated).temperature
    assert temperature is not None
    wanted = probabilities(
        read_params(calibrated / "net.params"), images, temperature=temperature.value
    )
    rows = await store.probabilities(int8, images)
    assert int8.precision.name == "int8"
    assert (rows.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.8
    assert np.abs(rows - wanted).mean() < 0.03
    assert np.abs(rows - wanted).max(axis=1).min() > 1e-6


@pytest.mark.parametrize("size", [1, 3, 16])
@on_the_engines_loop
async def test_int8_is_the_same_in_every_bucket(int8: LaneEngine, images: Any, size: int) -> None:
    """Other images and padding change nothing."""
    whole = await store.probabilities(int8, images)
    some = await int8.infer(list(images[:size]))
    assert np.abs(np.stack(some) - whole[:size]).max() < 1e-6  # type: ignore[arg-type]


@on_the_engines_loop
async def test_int8_is_the_same_after_another_load(
    int8: LaneEngine, calibrated: pathlib.Path, images: Any
) -> None:
    """Networks that were built in between change nothing."""
    build("cifar_resnet20_v1", 10)
    async with load_engine(calibrated, "cpu", 1, 64, "int8") as again:
        assert again.warm_up_seconds.keys() == int8.warm_up_seconds.keys()
        one, two = [await store.probabilities(engine, images) for engine in (int8, again)]
    assert np.array_equal(one, two)


INPUTS = np.random.default_rng(1).random((2, 3, 32, 32), dtype=np.float32)


def untrained(architecture: str) -> tuple[Any, Any]:
    mx = load_mxnet(1)
    network = build(architecture, 10, prefix="net_")
    network.initialize(mx.init.Xavier())
    network(mx.nd.array(INPUTS))
    return mx, network


def test_quantizable_handles_grouped_convolutions() -> None:
    """Another architecture can be quantized as well."""
    mx, network = untrained("cifar_resnext29_32x4d")
    quantizable = Quantizable(mx, network)
    block = quantizable.block(quantizable.observe([INPUTS]))
    wanted, found = (net(mx.nd.array(INPUTS)).asnumpy() for net in (network, block))
    assert 0 < np.abs(found - wanted).max() < np.abs(wanted).max() / 2


def test_observe_rejects_an_architecture_that_mxnet_fuses_wrongly() -> None:
    """MXNet's fused `_v2` networks are wrong, so they are not quantized."""
    mx, network = untrained("cifar_resnet20_v2")
    with pytest.raises(BadModel, match="cannot be quantized"):
        Quantizable(mx, network).observe([INPUTS])


def test_quantizable_leaves_both_ends_in_fp32() -> None:
    """Neither the image nor the logits are quantized."""
    names = Quantizable(*untrained("cifar_resnet20_v1")).names
    assert len(names) == 21 and "data" not in names
    assert not [name for name in names if "fully_connected" in name or "pool" in name]


@pytest.fixture
def copy(calibrated: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the calibrated version, for tests that damage it."""
    return pathlib.Path(shutil.copytree(calibrated, tmp_path / calibrated.parent.name / "1"))


def rename(described: dict[str, Any]) -> None:
    ranges = described["int8"]["ranges"]
    ranges["sg_mkldnn_conv_bn_99_output"] = ranges.pop(next(iter(ranges)))


def add(described: dict[str, Any]) -> None:
    described["int8"]["ranges"]["data"] = [-1, 1]


def widen(described: dict[str, Any]) -> None:
    ranges = described["int8"]["ranges"]
    ranges.update({name: [-1e6, 1e6] for name in ranges})


def narrow(described: dict[str, Any]) -> None:
    ranges = described["int8"]["ranges"]
    ranges.update({name: [0, 1e-3] for name in ranges})


def flip(described: dict[str, Any]) -> None:
    name = next(iter(described["int8"]["ranges"]))
    described["int8"]["ranges"][name] = [1, -1]


def lose(described: dict[str, Any]) -> None:
    described["int8"]["ranges"][next(iter(described["int8"]["ranges"]))] = [0, float("nan")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "the range of sg_mkldnn_conv"),
        (add, "no tensor data to quantize"),
        (widen, "cannot be computed in int8 with mxnet"),
        (narrow, "differ from the results when the version was added"),
        (flip, "is empty"),
        (lose, "int8.ranges"),
    ],
)
@on_the_engines_loop
async def test_int8_rejects_bad_ranges(copy: pathlib.Path, change: Change, message: str) -> None:
    """Ranges of another network, invented ones, or none: the message says what is wrong."""
    path = copy / manifest.MANIFEST
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(BadModel, match=message):
        async with load_engine(copy, "cpu", 1, 2, "int8"):
            pass


@on_the_engines_loop
async def test_int8_requires_calibration(model: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A version without ranges is not served in int8."""
    copy = pathlib.Path(shutil.copytree(model, tmp_path / model.parent.name / model.name))
    described = json.loads((copy / manifest.MANIFEST).read_text())
    described.pop("int8", None)
    (copy / manifest.MANIFEST).write_text(json.dumps(described))
    with pytest.raises(PrecisionUnavailable, match="calibrate"):
        async with load_engine(copy, "cpu", 1, 1, "int8"):
            pass
