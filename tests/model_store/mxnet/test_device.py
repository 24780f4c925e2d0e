"""Device: which device is chosen, with a fake MXNet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_store.device import DeviceUnavailable, GpuMemory
from model_store.mxnet.device import choose, context, gpu_memory


class MXNetError(RuntimeError):
    pass


class Array:
    """An array as of `mx.nd.ones`. Reading the sum back raises the device's error."""

    def __init__(self, error: str | None) -> None:
        self._error = error

    def __add__(self, other: Array) -> Array:
        return self

    def asnumpy(self) -> Any:
        if self._error:
            raise MXNetError(self._error)
        return np.array([2.0], dtype=np.float32)


def mxnet(cuda: bool = True, gpus: int = 0, error: str | None = None) -> Any:
    return SimpleNamespace(
        cpu=lambda: "cpu context",
        gpu=lambda number: f"gpu context {number}",
        runtime=SimpleNamespace(Features=lambda: SimpleNamespace(is_enabled=lambda name: cuda)),
        context=SimpleNamespace(num_gpus=lambda: gpus),
        nd=SimpleNamespace(ones=lambda shape, ctx: Array(error)),
        base=SimpleNamespace(MXNetError=MXNetError),
    )


NO_KERNEL = "Traceback\nCUDA: no kernel image is available for execution on the device"


@pytest.mark.parametrize(
    ("wanted", "mx", "name", "expected", "reason"),
    [
        ("cpu", mxnet(gpus=1), "cpu", "cpu context", "as requested"),
        ("auto", mxnet(gpus=1), "gpu:0", "gpu context 0", "its test computation succeeded"),
        ("gpu", mxnet(gpus=2), "gpu:0", "gpu context 0", "its test computation succeeded"),
        ("gpu:1", mxnet(gpus=2), "gpu:1", "gpu context 1", "its test computation succeeded"),
        ("auto", mxnet(cuda=False), "cpu", "cpu context", "CPU build"),
        ("auto", mxnet(gpus=0), "cpu", "cpu context", "no NVIDIA GPU"),
        ("auto", mxnet(gpus=1, error=NO_KERNEL), "cpu", "cpu context", "no kernel image"),
    ],
)
def test_choose_takes_the_device_and_gives_the_reason(
    wanted: str, mx: Any, name: str, expected: str, reason: str
) -> None:
    """`auto` falls back to the CPU and says why; a name gets that device."""
    device = choose(mx, wanted)
    assert (device.name, context(mx, device)) == (name, expected)
    assert reason in device.reason


@pytest.mark.parametrize(
    ("wanted", "mx", "message"),
    [
        ("gpu", mxnet(cuda=False), "CPU build"),
        ("gpu", mxnet(gpus=0), "no NVIDIA GPU"),
        ("gpu:2", mxnet(gpus=2), "gpu:2 is not one of the 2"),
        ("gpu", mxnet(gpus=1, error=NO_KERNEL), "Hopper"),
    ],
)
def test_choose_rejects_a_gpu_that_is_unusable(wanted: str, mx: Any, message: str) -> None:
    """An explicit GPU is never replaced by a CPU."""
    with pytest.raises(DeviceUnavailable, match=message) as caught:
        choose(mx, wanted)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["", "tpu", "gpu:", "gpu:-1", "gpu:x", "cpu:0"])
def test_choose_rejects_other_names(wanted: str) -> None:
    """Names other than auto, cpu, gpu and gpu:N are rejected."""
    with pytest.raises(ValueError, match="auto, cpu, gpu"):
        choose(mxnet(), wanted)


def test_gpu_memory_is_that_of_the_device() -> None:
    """Free and total bytes of the GPU that computes; None for a CPU."""
    mx = mxnet(gpus=2)
    mx.context.gpu_memory_info = {1: (3 * 2**30, 8 * 2**30)}.get
    assert gpu_memory(mx, choose(mx, "gpu:1")) == GpuMemory(free=3 * 2**30, total=8 * 2**30)
    assert gpu_memory(mx, choose(mx, "cpu")) is None


def test_gpu_memory_is_none_if_it_cannot_be_read() -> None:
    """No error is raised."""

    def fail(number: int) -> None:
        raise MXNetError("CUDA: an error")

    mx = mxnet(gpus=1)
    mx.context.gpu_memory_info = fail
    assert gpu_memory(mx, choose(mx, "gpu")) is None
