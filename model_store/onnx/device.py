"""Device: chooses the device that runs networks with ONNX Runtime.

A GPU is chosen only if ONNX Runtime has machine code for this GPU, and computes the same results on
the GPU as on the CPU.
"""

from __future__ import annotations

from typing import Any

from model_store.device import Device, cpu_instead, gpu_number
from model_store.onnx.cuda import Cuda
from model_store.onnx.driver import DriverError
from model_store.onnx.session import brief
from model_store.onnx.trial import is_right

CUDA = "CUDAExecutionProvider"


def choose(ort: Any, wanted: str, cuda: Cuda) -> Device:
    """Choose a device.

    Args:
        ort: The module `onnxruntime`.
        wanted: auto, cpu, gpu (the first GPU) or gpu:N. N is counted from 0.
        cuda: NVIDIA's driver and libraries.

    Raises:
        ValueError: `wanted` is not one of these names.
        DeviceUnavailable: The GPU is missing or cannot compute.
    """
    number = gpu_number(wanted)
    if number is None:
        return Device("cpu", "as requested")
    if CUDA not in ort.get_available_providers():
        reason: str | None = (
            "this is the CPU build of ONNX Runtime (the extra 'onnx-gpu' installs onnxruntime-gpu "
            "instead)"
        )
    else:
        try:
            reason = _why_unusable(ort, number, cuda)
        except DriverError as error:
            reason = str(error)
    if reason is None:
        name = cuda.driver.name(number)
        return Device(f"gpu:{number}", f"the test computation on {name} succeeded")
    return cpu_instead(wanted, reason)


def _why_unusable(ort: Any, number: int, cuda: Cuda) -> str | None:
    """Return the reason why the GPU `number` cannot be used, or None if it can be used."""
    driver, build = cuda.driver, f"onnxruntime-gpu {ort.__version__}"
    if driver.count == 0:
        return "no NVIDIA GPU is visible to this process"
    if number >= driver.count:
        return f"gpu:{number} is not one of the {driver.count} visible GPUs (counted from 0)"
    gpu = f"gpu:{number} ({driver.name(number)})"
    needed, (major, minor) = ort.cuda_version.partition(".")[0], driver.cuda_version
    if major < int(needed):
        return (
            f"NVIDIA's driver supports at most CUDA {major}.{minor}, but {build} needs CUDA "
            f"{needed}: update the driver"
        )
    code, capability = cuda.machine_code(), driver.capability(number)
    if code is not None and not code.runs_on(capability):
        return (
            f"{gpu} has compute capability {capability[0]}.{capability[1]}, but {build} has "
            f"machine code for {code} only"
        )
    if reason := cuda.preload(needed):
        return reason
    try:
        return None if is_right(ort, CUDA, number) else f"{gpu} computes wrong results"
    except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors share no other base
        return f"{gpu} does not compute ({brief(error)})"
