"""Device: names the device that runs neural networks.

A user requests `auto`, `cpu`, `gpu` or `gpu:N`. `auto` means the first GPU or, if that GPU is
missing or cannot compute, the CPU. If a user requests a GPU that is missing or cannot compute, an
error is raised. The module `device` of each backend chooses the device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEVICE = re.compile(r"auto|cpu|gpu(:\d+)?")


class DeviceUnavailable(RuntimeError):
    """The requested device is missing or cannot compute. The message says which device, and why."""


@dataclass(frozen=True)
class Device:
    """The device that was chosen."""

    name: str
    """Name of the device: cpu or gpu:N."""
    reason: str
    """Reason why the device was chosen."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Free and total memory of a GPU in bytes, counting all processes."""

    free: int
    total: int


def cpu_instead(wanted: str, reason: str) -> Device:
    """Return the CPU if `wanted` is auto, because a GPU cannot be used.

    Args:
        wanted: auto, gpu or gpu:N.
        reason: Reason why the GPU cannot be used.

    Raises:
        DeviceUnavailable: `wanted` is not auto.
    """
    if wanted == "auto":
        return Device("cpu", reason)
    raise DeviceUnavailable(f"device {wanted} was requested, but {reason}")


def gpu_number(wanted: str) -> int | None:
    """Return the number of the GPU that `wanted` names, counted from 0. None: the CPU.

    Args:
        wanted: auto, cpu, gpu or gpu:N. `auto` and `gpu` mean the first GPU.

    Raises:
        ValueError: `wanted` is not one of these names.
    """
    if not DEVICE.fullmatch(wanted):
        raise ValueError(f"device {wanted!r} is not one of auto, cpu, gpu, gpu:N")
    return None if wanted == "cpu" else int(wanted.partition(":")[2] or 0)
