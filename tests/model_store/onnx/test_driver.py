"""NVIDIA's driver, with a fake library."""

# ruff: noqa: N802  # the names are those of the library

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from model_store.device import GpuMemory
from model_store.onnx.driver import LIBRARY, Driver, DriverError

CONTEXT = 0x7F12_3456_789A
"""A pointer that does not fit into 32 bits."""


class Library:
    """Replaces libcuda.so.1. It has two GPUs, whose handles are 40 and 41."""

    def __init__(self, status: int = 0, memory_status: int = 0) -> None:
        self.status = status
        self.memory_status = memory_status
        self.current: list[int | None] = []
        self.retained = 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = 40 + number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = f"GPU {device}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = {75: 8, 76: device - 40}[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        self.retained += 1
        context._obj.value = CONTEXT + device
        return 0

    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> int:
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.current.pop()
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        assert self.current == [CONTEXT + 41]
        free._obj.value, total._obj.value = 5 << 32, 7 << 32
        return self.memory_status

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = {719: b"unspecified launch failure"}.get(status)
        return 0


def driver(library: Library) -> Driver:
    return Driver(lambda name: library)


def test_driver_reports_the_gpus() -> None:
    """Their number, names, compute capabilities, and the driver's version of CUDA."""
    found = driver(Library())
    assert (found.count, found.cuda_version) == (2, (13, 2))
    assert (found.name(1), found.capability(0), found.capability(1)) == ("GPU 41", (8, 0), (8, 1))


def test_driver_without_a_gpu() -> None:
    """The count is 0 if the driver finds no GPU, which is no error."""
    assert driver(Library(status=100)).count == 0


def test_memory_is_read_in_the_gpus_context() -> None:
    """The context is retained once, and is current only while the memory is read."""
    library = Library()
    found = driver(library)
    assert [found.memory(1) for _ in range(2)] == [GpuMemory(free=5 << 32, total=7 << 32)] * 2
    assert (library.retained, library.current) == (1, [])


def test_memory_of_a_lost_gpu() -> None:
    """The driver's error is raised, and the context is not current any more."""
    library = Library(memory_status=719)
    with pytest.raises(DriverError, match=r"719 \(unspecified launch failure\)"):
        driver(library).memory(1)
    assert library.current == []


def test_driver_raises_if_it_cannot_be_used() -> None:
    """If the library is missing, or cannot be initialized."""

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(DriverError, match=LIBRARY):
        Driver(missing)
    with pytest.raises(DriverError, match=r"error 803 \(unknown error\)"):
        driver(Library(status=803))
