"""Which backend runs a version, with fake backends."""

from __future__ import annotations

from typing import cast

import pytest

from model_store import backends
from model_store.backend import Backend, BackendUnavailable, Request
from model_store.device import Device, DeviceUnavailable
from model_store.manifest import BackendName, BadModel, Manifest
from tests.model_store.test_manifest import FULL, GOOD

WITH_ONNX = Manifest.model_validate(FULL)
WITHOUT_ONNX = Manifest.model_validate(GOOD)


class FakeBackend:
    """A backend that has reached a device."""

    def __init__(self, device: str) -> None:
        self.device = Device(device, "a test")


class FakeModule:
    """A backend module that reaches `device`, or raises an error at its start."""

    INSTALL = "install it"

    def __init__(
        self, device: str | Exception | None = "cpu", runs: bool = True, gpu_build: bool = False
    ) -> None:
        self.device = device
        self.runs = runs
        self.gpu_build = gpu_build
        self.starts = 0

    def is_installed(self) -> bool:
        return self.device is not None

    def may_reach_gpu(self) -> bool:
        return self.gpu_build

    def why_not(self, model: Manifest) -> str | None:
        return None if self.runs else "cannot run this version"

    def start(self, request: Request) -> Backend:
        self.starts += 1
        if isinstance(self.device, Exception):
            raise self.device
        assert self.device is not None
        return cast(Backend, FakeBackend(self.device))


def start(
    monkeypatch: pytest.MonkeyPatch,
    mxnet: FakeModule,
    onnxruntime: FakeModule,
    wanted: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    model: Manifest = WITH_ONNX,
) -> tuple[BackendName, str]:
    """Start a backend, and return its name and the reason."""
    monkeypatch.setattr(backends, "MODULES", {"mxnet": mxnet, "onnxruntime": onnxruntime})
    _, choice = backends.start(wanted, Request(model, device, 1, precision, 16))
    return choice.name, choice.reason


NO_GPU = DeviceUnavailable("gpu:0 does not compute")
BROKEN = BackendUnavailable("a library is missing")


@pytest.mark.parametrize(
    ("mxnet", "onnxruntime", "name", "reason"),
    [
        (FakeModule(), FakeModule(), "mxnet", "the same device, and mxnet is preferred"),
        (FakeModule(), FakeModule(None), "mxnet", "onnxruntime is not installed"),
        (FakeModule(None), FakeModule(), "onnxruntime", "mxnet is not installed: install it"),
        (FakeModule(), FakeModule(runs=False), "mxnet", "onnxruntime cannot run this version"),
        (FakeModule(runs=False), FakeModule(), "onnxruntime", "mxnet cannot run this version"),
        (FakeModule(), FakeModule("gpu:0", gpu_build=True), "onnxruntime", "it can use gpu:0"),
        (FakeModule("gpu:0", gpu_build=True), FakeModule(), "mxnet", "it can use gpu:0"),
        (
            FakeModule("gpu:0", gpu_build=True),
            FakeModule("gpu:0", gpu_build=True),
            "mxnet",
            "it can use gpu:0",
        ),
        (
            FakeModule("cpu", gpu_build=True),
            FakeModule("gpu:0", gpu_build=True),
            "onnxruntime",
            "it can use gpu:0",
        ),
        (FakeModule(BROKEN, gpu_build=True), FakeModule(), "onnxruntime", "mxnet failed: a lib"),
    ],
)
def test_auto_means_the_backend_that_reaches_the_best_device(
    monkeypatch: pytest.MonkeyPatch,
    mxnet: FakeModule,
    onnxruntime: FakeModule,
    name: str,
    reason: str,
) -> None:
    """A GPU before a CPU; if both reach the same device, MXNet."""
    chosen, why = start(monkeypatch, mxnet, onnxruntime)
    assert chosen == name
    assert reason in why


def test_auto_starts_no_backend_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a CPU build, if the other one is preferred."""
    mxnet, onnxruntime = FakeModule("cpu", gpu_build=True), FakeModule("cpu")
    assert start(monkeypatch, mxnet, onnxruntime)[0] == "mxnet"
    assert (mxnet.starts, onnxruntime.starts) == (1, 0)


def test_auto_does_not_try_gpus_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device cpu was requested."""
    mxnet, onnxruntime = FakeModule("cpu"), FakeModule("gpu:0", gpu_build=True)
    assert start(monkeypatch, mxnet, onnxruntime, device="cpu")[0] == "mxnet"
    assert onnxruntime.starts == 0


def test_auto_takes_the_backend_that_offers_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is calibrated for MXNet only, or not at all."""
    assert start(monkeypatch, FakeModule(), FakeModule(), precision="int8")[0] == "mxnet"
    fields = FULL | {"int8": None, "onnx": FULL["onnx"] | {"int8": _file("net.int8.onnx")}}
    name, reason = start(
        monkeypatch,
        FakeModule(),
        FakeModule(),
        precision="int8",
        model=Manifest.model_validate(fields),
    )
    assert name == "onnxruntime" and "mxnet does not offer int8" in reason


def _file(name: str) -> dict[str, object]:
    return {"file": name, "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize("name", ["mxnet", "onnxruntime"])
def test_start_takes_the_backend_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Even if the other one would reach a GPU."""
    mxnet, onnxruntime = FakeModule("cpu"), FakeModule("cpu")
    assert start(monkeypatch, mxnet, onnxruntime, wanted=name) == (name, "as requested")
    assert (mxnet if name == "onnxruntime" else onnxruntime).starts == 0


def test_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, if the backend that was asked for, or every backend, is missing."""
    with pytest.raises(BackendUnavailable, match="onnxruntime is not installed: install it"):
        start(monkeypatch, FakeModule(), FakeModule(None), wanted="onnxruntime")
    with pytest.raises(BackendUnavailable, match="mxnet is not installed: install it; onnx"):
        start(monkeypatch, FakeModule(None), FakeModule(None))
    with pytest.raises(ValueError, match="auto, mxnet, onnxruntime"):
        start(monkeypatch, FakeModule(), FakeModule(), wanted="torch")


def test_start_raises_the_error_of_a_gpu_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If no backend reaches it."""
    with pytest.raises(DeviceUnavailable, match="does not compute"):
        start(
            monkeypatch,
            FakeModule(NO_GPU, gpu_build=True),
            FakeModule(NO_GPU, gpu_build=True),
            device="gpu",
        )


def test_check_rejects_another_version_that_the_backend_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process keeps its backend."""
    modules = {"mxnet": FakeModule(), "onnxruntime": FakeModule(runs=False)}
    monkeypatch.setattr(backends, "MODULES", modules)
    backends.check("mxnet", WITHOUT_ONNX)
    with pytest.raises(BadModel, match="pets 3: this process runs onnxruntime"):
        backends.check("onnxruntime", WITHOUT_ONNX)
