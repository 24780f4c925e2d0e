"""Device: chooses the device that runs networks with MXNet.

Each GPU is tested with a small computation, because MXNet also lists GPUs for which it has no
machine code. MXNet 1.9.1 has machine code for compute capability 5.0 to 8.6, which also runs on
8.9. There is no machine code for Hopper and later GPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model_store.device import Device, GpuMemory, cpu_instead, gpu_number


def choose(mx: Any, wanted: str) -> Device:
    """Choose a device.

    Args:
        mx: The module `mxnet`.
        wanted: auto, cpu, gpu (the first GPU) or gpu:N. N is counted from 0.

    Raises:
        ValueError: `wanted` is not one of these names.
        DeviceUnavailable: The GPU is missing or cannot compute.
    """
    number = gpu_number(wanted)
    if number is None:
        return Device("cpu", "as requested")
    reason = _why_unusable(mx, number)
    if reason is None:
        return Device(f"gpu:{number}", "its test computation succeeded")
    return cpu_instead(wanted, reason)


def context(mx: Any, device: Device) -> Any:
    """Return MXNet's context of a device."""
    return mx.cpu() if device.name == "cpu" else mx.gpu(gpu_number(device.name))


def gpu_memory(mx: Any, device: Device) -> GpuMemory | None:
    """Return the memory of a GPU.

    Returns None if `device` is a CPU, or if the GPU's driver does not report its memory.
    """
    if device.name == "cpu":
        return None
    try:
        return GpuMemory(*mx.context.gpu_memory_info(gpu_number(device.name)))
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
