"""The backend of ONNX Runtime: which file it runs, and on how many sessions."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from model_store import manifest, probes, versions
from model_store.backend import Request
from model_store.device import Device, GpuMemory
from model_store.manifest import BadModel, Manifest
from model_store.onnx import backend, files, openvino
from model_store.onnx.cuda import Cuda
from model_store.onnx.driver import DriverError
from model_store.onnx.session import SessionNetwork

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def copy(shipped: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the version that ships, for tests that damage it."""
    return pathlib.Path(shutil.copytree(shipped, tmp_path / shipped.parent.name / shipped.name))


@pytest.fixture
def started(shipped: pathlib.Path) -> backend.OnnxBackend:
    return backend.start(Request(versions.read_manifest(shipped), "cpu", 1, "fp32", 16))


def probabilities(network: Any, model: Manifest) -> Any:
    for _ in network.load(beside=False):
        pass
    logits = network.compute(probes.images()) / (
        model.temperature.value if model.temperature else 1
    )
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_networks_compute_what_was_recorded(
    started: backend.OnnxBackend, shipped: pathlib.Path, precision: manifest.PrecisionName
) -> None:
    """In each precision that has a file."""
    model = versions.read_manifest(shipped)
    (network,) = started.networks(shipped, model, precision, [1, 2, 4], 1)
    recorded = np.array(model.onnx[precision].probes)
    assert np.abs(probabilities(network, model) - recorded).max() < probes.MAX_DIFFERENCE[precision]


def test_networks_of_all_lanes_share_a_session(
    started: backend.OnnxBackend, shipped: pathlib.Path
) -> None:
    """The session is freed when the last lane has closed its network."""
    model = versions.read_manifest(shipped)
    first, second = started.networks(shipped, model, "fp32", [1], 2)
    assert isinstance(first, SessionNetwork) and isinstance(second, SessionNetwork)
    assert first._session is second._session
    first.close()
    assert second.compute(probes.images()).shape == (4, 10)


def test_networks_are_made_of_the_parameters_if_there_is_no_file(
    started: backend.OnnxBackend, shipped: pathlib.Path
) -> None:
    """A version that was added before this backend existed can be served in fp32."""
    model = versions.read_manifest(shipped)
    bare = model.model_copy(update={"onnx": {}})
    assert backend.why_not(bare) is None
    (network,) = started.networks(shipped, bare, "fp32", [1], 1)
    assert np.abs(probabilities(network, model) - np.array(model.probes["fp32"])).max() < 1e-4


def test_why_not_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, shipped: pathlib.Path
) -> None:
    """The package `onnx` makes the missing file."""
    model = versions.read_manifest(shipped)
    monkeypatch.setattr(files, "can_write", lambda: False)
    assert backend.why_not(model) is None
    assert "shoal[export]" in str(backend.why_not(model.model_copy(update={"onnx": {}})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "SHA-256"),
        (lambda content: content + b"x", "bytes instead of"),
        (lambda content: b"", "0 bytes instead of"),
    ],
)
def test_networks_reject_a_changed_file(
    started: backend.OnnxBackend, copy: pathlib.Path, change: Any, message: str
) -> None:
    """Before ONNX Runtime reads it."""
    path = copy / "net.onnx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadModel, match=message):
        started.networks(copy, versions.read_manifest(copy), "fp32", [1], 1)


def test_networks_reject_a_missing_file(started: backend.OnnxBackend, copy: pathlib.Path) -> None:
    """The message names it."""
    (copy / "net.onnx").unlink()
    with pytest.raises(BadModel, match=r"net\.onnx: No such file"):
        started.networks(copy, versions.read_manifest(copy), "fp32", [1], 1)


def test_networks_check_the_file_before_onnx_runtime_reads_it(
    started: backend.OnnxBackend, copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the manifest describes exactly this file."""
    content = b"not a network"
    (copy / "net.onnx").write_bytes(content)
    model = versions.read_manifest(copy)
    described = _described(content)
    changed = model.model_copy(update={"onnx": {"fp32": described}})
    monkeypatch.setattr(backend, "open_session", None)
    with pytest.raises(BadModel):
        started.networks(copy, changed, "fp32", [1], 1)


def _described(content: bytes) -> manifest.OnnxFile:
    digest = hashlib.sha256(content).hexdigest()
    return manifest.OnnxFile(file="net.onnx", bytes=len(content), sha256=digest)


def test_accelerator_is_named_if_it_is_used(
    started: backend.OnnxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO runs int8 only."""
    monkeypatch.setattr(openvino, "is_useful", lambda precision, device: precision == "int8")
    assert started.accelerator("int8") == "OpenVINO"
    assert started.accelerator("fp32") is None


def on_gpu(gpu: Any, memory: Any = None) -> backend.OnnxBackend:
    """Return a backend that uses the fourth GPU, with a driver that has the function `memory`."""
    cuda = cast(Cuda, SimpleNamespace(driver=SimpleNamespace(memory=memory)))
    return backend.OnnxBackend(gpu, Device("gpu:3", "as requested"), 1, cuda)


def test_networks_run_on_the_gpu_that_was_chosen(shipped: pathlib.Path) -> None:
    """One network for the lane of the GPU, with a session for each batch size."""
    from tests.model_store.onnx.gpus import FakeGpu

    gpu, model = FakeGpu(), versions.read_manifest(shipped)
    (network,) = on_gpu(gpu).networks(shipped, model, "fp16", [1, 4], 1)
    recorded = np.array(model.onnx["fp16"].probes)
    assert np.abs(probabilities(network, model) - recorded).max() < probes.MAX_DIFFERENCE["fp16"]
    assert [(bucket, options["device_id"]) for bucket, options in gpu.opened] == [
        (1, "3"),
        (4, "3"),
    ]


def test_gpu_memory_is_that_of_the_device(started: backend.OnnxBackend) -> None:
    """None for a CPU, and if the driver does not report the memory."""

    def fail(number: int) -> None:
        raise DriverError("the GPU was lost")

    assert started.gpu_memory() is None
    memory = GpuMemory(free=1, total=2)
    assert on_gpu(None, {3: memory}.get).gpu_memory() == memory
    assert on_gpu(None, fail).gpu_memory() is None
