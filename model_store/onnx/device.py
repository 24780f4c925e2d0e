"""Device: chooses the device that runs networks with ONNX Runtime."""

from __future__ import annotations

from typing import Any

from model_store.device import Device, DeviceUnavailable, gpu_number

CUDA = "CUDAExecutionProvider"


def choose(ort: Any, wanted: str) -> Device:
    """Choose a device.

    Args:
        ort: The module `onnxruntime`.
        wanted: auto, cpu, gpu (the first GPU) or gpu:N. N is counted from 0.

    Raises:
        ValueError: `wanted` is not one of these names.
        DeviceUnavailable: The GPU is missing or cannot compute.
    """
    number = gpu_number(wanted)
    if number is None:
        return Device("cpu", "as requested")
    reason = _why_unusable(ort, number)
    if reason is None:
        return Device(f"gpu:{number}", "its test computation succeeded")
    if wanted == "auto":
        return Device("cpu", reason)
    raise DeviceUnavailable(f"device {wanted} was requested, but {reason}")


def _why_unusable(ort: Any, number: int) -> str | None:
    """Return the reason why the GPU `number` cannot be used; None if it can be used."""
    if CUDA not in ort.get_available_providers():
        return (
            "this is the CPU build of ONNX Runtime (the extra 'onnx-gpu' installs onnxruntime-gpu "
            "instead)"
        )
    return f"gpu:{number} is not supported yet"
