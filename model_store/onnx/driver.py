"""Driver: reads properties of NVIDIA GPUs through the driver's library, libcuda.so.1."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from model_store.device import GpuMemory
from model_store.onnx.fatbin import Capability

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""Numbers of the driver's attributes `COMPUTE_CAPABILITY_MAJOR` and `COMPUTE_CAPABILITY_MINOR`."""
NO_DEVICE = 100
"""The driver's error `CUDA_ERROR_NO_DEVICE`."""
MAX_NAME = 256


class DriverError(RuntimeError):
    """NVIDIA's driver is missing or reports an error."""


class Driver:
    """The driver. GPUs are numbered from 0, without GPUs that `CUDA_VISIBLE_DEVICES` hides."""

    def __init__(self, open_library: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Load and initialize the driver.

        Args:
            open_library: Function that loads a library by its name.

        Raises:
            DriverError: The driver is missing, or cannot be initialized.
        """
        try:
            self._cuda = open_library(LIBRARY)
        except OSError as error:
            raise DriverError(f"NVIDIA's driver is missing ({error})") from error
        self._contexts: dict[int, ctypes.c_void_p] = {}
        """Number of a GPU -> primary context of the GPU, which ONNX Runtime also uses."""
        if (status := self._cuda.cuInit(0)) == NO_DEVICE:
            self.count = 0
        else:
            self._check(status)
            self.count = self._integer("cuDeviceGetCount")
        """Number of GPUs that are visible to this process."""

    @property
    def cuda_version(self) -> tuple[int, int]:
        """The latest version of CUDA that the driver supports."""
        version = self._integer("cuDriverGetVersion")
        return version // 1000, version % 1000 // 10

    def name(self, number: int) -> str:
        """Return the name of a GPU, such as "NVIDIA H200"."""
        name = ctypes.create_string_buffer(MAX_NAME)
        self._call("cuDeviceGetName", name, MAX_NAME, self._device(number))
        return name.value.decode(errors="replace")

    def capability(self, number: int) -> Capability:
        """Return the compute capability of a GPU."""
        device = self._device(number)
        major, minor = (self._integer("cuDeviceGetAttribute", n, device) for n in (MAJOR, MINOR))
        return major, minor

    def memory(self, number: int) -> GpuMemory:
        """Return the memory of a GPU. The first call may create the GPU's context.

        Raises:
            DriverError: The driver does not report the memory, for example because the GPU was
                lost.
        """
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if number not in self._contexts:
            context = ctypes.c_void_p()
            device = self._device(number)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._contexts[number] = context
        self._call("cuCtxPushCurrent_v2", self._contexts[number])
        try:
            self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return GpuMemory(free.value, total.value)

    def _device(self, number: int) -> int:
        return self._integer("cuDeviceGet", number)

    def _integer(self, function: str, *arguments: Any) -> int:
        result = ctypes.c_int()
        self._call(function, ctypes.byref(result), *arguments)
        return result.value

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(getattr(self._cuda, function)(*arguments))

    def _check(self, status: int) -> None:
        if status != 0:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            message = (text.value or b"unknown error").decode(errors="replace")
            raise DriverError(f"NVIDIA's driver reports error {status} ({message})")
