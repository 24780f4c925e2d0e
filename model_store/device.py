"""Where the network runs: `auto`, `cpu`, `gpu` or `gpu:N` turned into an MXNet context.

`auto` takes the first GPU that computes and otherwise the CPU; an explicit `gpu` that is not
there, or does not compute, is an error in words. "Computes" is tried, not looked up: MXNet lists
GPUs that its machine code does not fit (it carries code for compute capability 5.0 to 8.6 and
none for Hopper or later), and only a first kernel tells.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

DEVICE = re.compile(r"auto|cpu|gpu(:\d+)?")


class DeviceUnavailable(RuntimeError):
    """The device asked for is not there or does not compute; the message says which and why."""


@dataclass(frozen=True)
class Device:
    """`context` is MXNet's; `name` is `cpu` or `gpu:N`; `reason` says why it was chosen."""

    context: Any
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of the whole GPU, whoever uses them."""

    free: int
    total: int


def choose(mx: Any, wanted: str) -> Device:
    """The device for `wanted`. Raises ValueError for a bad name, DeviceUnavailable."""
    if not DEVICE.fullmatch(wanted):
        raise ValueError(f"device {wanted!r} is not one of auto, cpu, gpu, gpu:N")
    if wanted == "cpu":
        return Device(mx.cpu(), "cpu", "as asked")
    number = int(wanted.partition(":")[2] or 0)
    trouble = _trouble(mx, number)
    if trouble is None:
        return Device(mx.gpu(number), f"gpu:{number}", "it computes")
    if wanted == "auto":
        return Device(mx.cpu(), "cpu", trouble)
    raise DeviceUnavailable(f"device {wanted} was asked for, but {trouble}")


def gpu_memory(mx: Any, device: Device) -> GpuMemory | None:
    """Of `device`; None for a CPU, and where the driver does not say."""
    if device.name == "cpu":
        return None
    try:
        return GpuMemory(*mx.context.gpu_memory_info(int(device.name.partition(":")[2])))
    except mx.base.MXNetError:
        return None


def _trouble(mx: Any, number: int) -> str | None:
    """Why GPU `number` cannot be used, or None."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        return "this is the CPU build of MXNet (the extra 'gpu' installs mxnet-cu112 instead)"
    try:
        count = mx.context.num_gpus()
        if count == 0:
            return "no NVIDIA GPU is visible to this process"
        if number >= count:
            return f"gpu:{number} is not one of the {count} visible (counted from 0)"
        one = mx.nd.ones((1,), ctx=mx.gpu(number))
        if np.array_equal((one + one).asnumpy(), [2.0]):
            return None
        return f"gpu:{number} computes wrong results"
    except mx.base.MXNetError as error:
        first = str(error).strip().splitlines()[-1]
        return (
            f"gpu:{number} does not compute ({first}); MXNet 1.9.1 serves compute capability "
            "5.0 to 8.9, Maxwell to Ada, not Hopper or later"
        )
