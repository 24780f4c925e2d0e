"""Device: chooses the device that runs networks.

A user requests `auto`, `cpu`, `gpu` or `gpu:N`. `auto` means the first GPU if MXNet can compute on
it, and otherwise the CPU. If a user requests a GPU that is missing or cannot compute, an error is
raised. Each GPU is tested with a small computation, because MXNet also lists GPUs that it has no
machine code for. MXNet 1.9.1 has machine code for compute capability 5.0 to 8.6, which also runs on
8.9, and none for Hopper or later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

DEVICE = re.compile(r"auto|cpu|gpu(:\d+)?")


class DeviceUnavailable(RuntimeError):
    """The requested device is missing or cannot compute. The message says which device, and why."""


@dataclass(frozen=True)
class Device:
    """The device that was chosen."""

    context: Any
    """MXNet's context of the device."""
    name: str
    """Name of the device: cpu or gpu:N."""
    reason: str
    """Reason why the device was chosen."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Free and total memory of a GPU in bytes, counting all processes."""

    free: int
    total: int


def choose(mx: Any, wanted: str) -> Device:
    """Choose a device.

    Args:
        mx: The module `mxnet`.
        wanted: auto, cpu, gpu (the first GPU) or gpu:N (counted from 0).

    Raises:
        ValueError: `wanted` is none of these.
        DeviceUnavailable: The GPU is missing or cannot compute.
    """
    if not DEVICE.fullmatch(wanted):
        raise ValueError(f"device {wanted!r} is not one of auto, cpu, gpu, gpu:N")
    if wanted == "cpu":
        return Device(mx.cpu(), "cpu", "as requested")
    number = int(wanted.partition(":")[2] or 0)
    reason = _why_unusable(mx, number)
    if reason is None:
        return Device(mx.gpu(number), f"gpu:{number}", "its test computation succeeded")
    if wanted == "auto":
        return Device(mx.cpu(), "cpu", reason)
    raise DeviceUnavailable(f"device {wanted} was requested, but {reason}")


def gpu_memory(mx: Any, device: Device) -> GpuMemory | None:
    """Return the memory of a GPU.

    Returns None if `device` is a CPU, or if the GPU's driver does not report its memory.
    """
    if device.name == "cpu":
        return None
    try:
        return GpuMemory(*mx.context.gpu_memory_info(int(device.name.partition(":")[2])))
    except mx.base.MXNetError:
        return None


def _why_unusable(mx: Any, number: int) -> str | None:
    """Return the reason why the GPU `number` cannot be used; None if it can be used."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this is the CPU build of MXNet (the extra 'gpu' installs mxnet-cu112 instead)"
    try:
        count = mx.context.num_gpus()
        if count == 0:
            return "no NVIDIA GPU is visible to this process"
        if number >= count:
            return f"gpu:{number} is not one of the {count} visible GPUs (counted from 0)"
        one = mx.nd.ones((1,), ctx=mx.gpu(number))
        if np.array_equal((one + one).asnumpy(), [2.0]):
            return None
        return f"gpu:{number} computes wrong results"
    except mx.base.MXNetError as error:
        first = str(error).strip().splitlines()[-1]
        return (
            f"gpu:{number} does not compute ({first}); MXNet 1.9.1 supports compute capability "
            "5.0 to 8.9 (Maxwell to Ada), not Hopper or later"
        )
