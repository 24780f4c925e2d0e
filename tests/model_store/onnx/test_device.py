"""Device: which device is chosen, with a fake ONNX Runtime and a fake driver."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from model_store.device import DeviceUnavailable
from model_store.onnx.cuda import Cuda
from model_store.onnx.device import CUDA, choose
from model_store.onnx.driver import DriverError
from model_store.onnx.fatbin import MachineCode

CODE = MachineCode(frozenset({(7, 5), (9, 0), (12, 0)}), frozenset())


@dataclasses.dataclass
class FakeCuda:
    """NVIDIA's software on a machine with `count` GPUs."""

    count: int = 1
    capability: tuple[int, int] = (9, 0)
    cuda_version: tuple[int, int] = (13, 0)
    code: MachineCode | None = CODE
    missing: str | None = None
    error: str | None = None
    """Error of the driver."""

    @property
    def driver(self) -> Any:
        if self.error:
            raise DriverError(self.error)
        return SimpleNamespace(
            count=self.count,
            cuda_version=self.cuda_version,
            capability=lambda number: self.capability,
            name=lambda number: f"GPU {number}",
        )

    def machine_code(self) -> MachineCode | None:
        return self.code

    def preload(self, major: str) -> str | None:
        assert major == "13"
        return self.missing


class Session:
    """The results of the CPU are 0."""

    def __init__(self, result: float | Exception) -> None:
        self.result = result

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return [np.array([self.result], dtype=np.float32)]


def runtime(result: float | Exception = 0, cuda: bool = True) -> Any:
    """Return an ONNX Runtime whose GPU computes `result`."""
    return SimpleNamespace(
        __version__="1.31.1",
        cuda_version="13.0",
        get_available_providers=lambda: [CUDA, "CPU"] if cuda else ["CPU"],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda name, value: None),
        InferenceSession=lambda *_, **options: Session(0 if "providers" in options else result),
    )


NO_KERNEL = RuntimeError(
    "[ONNXRuntimeError] : 1 : FAIL : file.cc:1 CUDA failure 209: no kernel image is available for "
    "execution on the device ; GPU=0 ; hostname=h\nmore"
)
BLACKWELL = FakeCuda(capability=(10, 0))


@pytest.mark.parametrize(
    ("wanted", "ort", "cuda", "name", "reason"),
    [
        ("cpu", runtime(), FakeCuda(), "cpu", "as requested"),
        ("auto", runtime(), FakeCuda(), "gpu:0", "the test computation on GPU 0 succeeded"),
        ("gpu", runtime(), FakeCuda(), "gpu:0", "the test computation on GPU 0 succeeded"),
        ("gpu:1", runtime(), FakeCuda(count=2), "gpu:1", "on GPU 1 succeeded"),
        ("auto", runtime(), FakeCuda(code=None), "gpu:0", "succeeded"),
        ("auto", runtime(cuda=False), FakeCuda(), "cpu", "CPU build"),
        ("auto", runtime(), FakeCuda(error="no driver"), "cpu", "no driver"),
        ("auto", runtime(), FakeCuda(count=0), "cpu", "no NVIDIA GPU"),
        ("auto", runtime(), BLACKWELL, "cpu", "10.0"),
        ("auto", runtime(1), FakeCuda(), "cpu", "gpu:0 (GPU 0) computes wrong results"),
    ],
)
def test_choose_takes_the_device_and_gives_the_reason(
    wanted: str, ort: Any, cuda: FakeCuda, name: str, reason: str
) -> None:
    """`auto` falls back to the CPU and says why; a name gets that device."""
    device = choose(ort, wanted, cast(Cuda, cuda))
    assert device.name == name
    assert reason in device.reason


@pytest.mark.parametrize(
    ("wanted", "ort", "cuda", "message"),
    [
        ("gpu", runtime(cuda=False), FakeCuda(), "'onnx-gpu'"),
        ("gpu", runtime(), FakeCuda(error="NVIDIA's driver is missing"), "driver is missing"),
        ("gpu:2", runtime(), FakeCuda(count=2), "gpu:2 is not one of the 2"),
        (
            "gpu",
            runtime(),
            FakeCuda(cuda_version=(12, 8)),
            r"at most CUDA 12\.8, but onnxruntime-gpu 1\.31\.1 needs CUDA 13: update",
        ),
        (
            "gpu",
            runtime(),
            BLACKWELL,
            r"gpu:0 \(GPU 0\) has compute capability 10\.0, but .* for 7\.5, 9\.0, 12\.0 only$",
        ),
        ("gpu", runtime(), FakeCuda(missing="libcudnn.so.9 is missing"), "libcudnn"),
        ("gpu", runtime(NO_KERNEL), FakeCuda(), r"\(CUDA failure 209: no kernel .* device\)$"),
    ],
)
def test_choose_rejects_a_gpu_that_is_unusable(
    wanted: str, ort: Any, cuda: FakeCuda, message: str
) -> None:
    """An explicit GPU is never replaced by a CPU. The reason is one line."""
    with pytest.raises(DeviceUnavailable, match=message) as caught:
        choose(ort, wanted, cast(Cuda, cuda))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["", "tpu", "gpu:", "gpu:-1", "gpu:x", "cpu:0"])
def test_choose_rejects_other_names(wanted: str) -> None:
    """Names other than auto, cpu, gpu and gpu:N are rejected."""
    with pytest.raises(ValueError, match="auto, cpu, gpu"):
        choose(runtime(), wanted, cast(Cuda, FakeCuda()))
