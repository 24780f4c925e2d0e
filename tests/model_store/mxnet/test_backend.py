"""The backend of MXNet: what it asks MXNet for, and when."""

from __future__ import annotations

import pathlib

import pytest

from model_store import manifest
from model_store.backend import Request
from model_store.device import Device
from model_store.engine import load_engine
from model_store.mxnet import amx, backend
from tests.model_store.test_manifest import GOOD

MANY = frozenset({"avx512_vnni", "amx_int8"})


@pytest.mark.parametrize(
    ("device", "gpu_build", "in_order"),
    [("auto", False, True), ("cpu", True, True), ("auto", True, False), ("gpu:0", True, False)],
)
def test_start_runs_in_order_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu_build: bool, in_order: bool
) -> None:
    """Lanes need it. A GPU, which may still be chosen, must not run in order."""
    loaded_in_order: list[bool] = []
    monkeypatch.setattr("model_store.mxnet.runtime.is_gpu_build", lambda: gpu_build)
    monkeypatch.setattr(
        backend,
        "load_mxnet",
        lambda threads, in_order, with_amx: loaded_in_order.append(in_order),
    )
    monkeypatch.setattr(backend, "choose", lambda mx, wanted: Device("cpu", wanted))
    backend.start(Request(manifest.Manifest.model_validate(GOOD), device, 1, "fp32", 16))
    assert loaded_in_order == [in_order]


@pytest.mark.parametrize(
    ("flags", "precision", "size", "gib", "worth_it"),
    [
        (MANY, "int8", 16, 24.0, True),
        (MANY, "auto", 16, 24.0, True),
        (MANY, "fp32", 16, 24.0, False),
        (MANY - {"amx_int8"}, "int8", 16, 24.0, False),
        (MANY, "int8", 16, 2.7, True),
        (MANY, "int8", 16, 2.5, False),
        (MANY, "int8", 64, 2.7, False),
        (MANY, "int8", 64, 3.5, True),
    ],
)
def test_is_useful_needs_room_for_two_versions(
    monkeypatch: pytest.MonkeyPatch,
    flags: frozenset[str],
    precision: str,
    size: int,
    gib: float,
    worth_it: bool,
) -> None:
    """In int8, if a third of the memory holds AMX for two versions: 21 convolutions in three
    buckets, or four."""
    ranges = {f"tensor{number}": [-1.0, 1.0] for number in range(21)}
    measured = [
        {"on": "noise", "images": 1, "accuracy": 0.9, "precision": name}
        for name in ("fp32", "int8")
    ]
    int8 = {"calibrated_on": "noise", "images": 1, "ranges": ranges}
    fields = GOOD | {"int8": int8, "measured": measured}
    monkeypatch.setattr(amx, "memory", lambda: int(gib * 2**30))
    monkeypatch.setattr("model_store.precision.cpu_flags", lambda: flags)
    request = Request(manifest.Manifest.model_validate(fields), "cpu", 1, precision, size)
    assert amx.is_useful(request) is worth_it


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
async def test_engine_has_one_lane_on_a_gpu(
    model: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is requested."""
    gpu = Device("gpu:0", "for once")
    monkeypatch.setattr(backend, "choose", lambda mx, wanted: gpu)
    monkeypatch.setattr("model_store.mxnet.network.context", lambda mx, device: mx.cpu())
    async with load_engine(model, max_batch_size=1, precision="fp32", lanes=3) as loaded:
        assert loaded.lanes == 1
