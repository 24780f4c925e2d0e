"""Fills the GPU's memory, and breaks the GPU's context, to check how the engine reacts."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.gpu.computing import engine
from benchmarks.gpu.subject import NO_GPU, Subject
from model_store.batch import noise
from model_store.onnx.driver import LIBRARY

LARGE = 16384
"""Batch size whose first run needs some gigabytes."""
LEFT = 2**30
"""Bytes that remain free while a large batch is tried."""
CHUNK, SMALLEST = 2**30, 2**21
"""Sizes in bytes of the first and the last pieces of memory that are taken."""
LOST_TIMEOUT = 120.0
TRAP = b"""
.version 7.5
.target sm_75
.address_size 64
.visible .entry lose() { trap; ret; }
"""
"""Code for a GPU that stops with an error. The process cannot use the GPU afterwards."""


class Library:
    """NVIDIA's driver, with the context of a GPU that ONNX Runtime uses, too."""

    def __init__(self, number: int) -> None:
        """Opens the context.

        Args:
            number: Number of the GPU, counted from 0.
        """
        self._cuda = ctypes.CDLL(LIBRARY)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), number)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)

    def __call__(self, function: str, *arguments: Any) -> None:
        """Calls a function. Raises OSError if it fails."""
        if status := getattr(self._cuda, function)(*arguments):
            raise OSError(f"{function} returned {status}")

    @contextmanager
    def full(self, bytes_left: int) -> Iterator[None]:
        """Context manager during which only `bytes_left` of the GPU's memory are free."""
        pieces: list[ctypes.c_uint64] = []
        size = CHUNK
        try:
            while size >= SMALLEST:
                piece = ctypes.c_uint64()
                try:
                    if self._free() < bytes_left + size:
                        raise OSError("enough is taken")
                    self("cuMemAlloc_v2", ctypes.byref(piece), ctypes.c_size_t(size))
                    pieces.append(piece)
                except OSError:
                    size //= 2
            yield
        finally:
            for piece in pieces:
                self("cuMemFree_v2", piece)

    def lose(self) -> None:
        """Runs code that stops with an error."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), TRAP)
        self("cuModuleGetFunction", ctypes.byref(function), module, b"lose")
        self("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
        self._cuda.cuCtxSynchronize()

    def _free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value


def out_of_memory(subject: Subject) -> dict[str, Any]:
    """Runs a batch that does not fit into memory, smaller batches, and the same batch later."""
    if subject.gpu is None:
        return {"skipped": NO_GPU}
    library = Library(subject.gpu)
    small = subject.network("fp32", [1, 64])
    before = small.compute(noise(64))
    results: dict[str, Any] = {}
    with library.full(LEFT):
        try:
            subject.network("fp32", [LARGE]).close()
            results["large_batch"] = "it fitted, so nothing was shown"
        except MemoryError as error:
            results["large_batch"] = f"MemoryError: {error}"
        after = small.compute(noise(64))
    results["smaller_batch_differs_by"] = float(np.abs(after - before).max())
    large = subject.network("fp32", [LARGE])
    results["large_batch_later"] = list(large.compute(noise(LARGE)).shape)
    large.close()
    small.close()
    fits = results["smaller_batch_differs_by"] <= 1e-5
    results["ok"] = results["large_batch"].startswith("MemoryError") and fits
    return results


def recovery(subject: Subject) -> dict[str, Any]:
    """Replaces the version while the GPU is full. The active version must remain."""
    if subject.gpu is None:
        return {"skipped": NO_GPU}
    library = Library(subject.gpu)

    async def check() -> dict[str, Any]:
        images = list(noise(64))
        async with engine(subject, "fp32") as loaded:
            before = np.array(await loaded.infer(images))
            with library.full(0):
                try:
                    await loaded.replace(subject.folder)
                    error = "none"
                except Exception as raised:  # noqa: BLE001  # the report shows it
                    error = f"{type(raised).__name__}: {raised}"
                during = np.array(await loaded.infer(images))
            await loaded.replace(subject.folder)
            after = np.array(await loaded.infer(images))
        differences = [float(np.abs(rows - before).max()) for rows in (during, after)]
        ok = error != "none" and max(differences) <= 1e-5
        return {"error_while_full": error, "differences": differences, "ok": ok}

    return asyncio.run(check())


def lost(subject: Subject) -> dict[str, Any]:
    """Breaks the GPU's context in another process, and reports what the engine does there."""
    if subject.gpu is None:
        return {"skipped": NO_GPU}
    command = [sys.executable, "-m", "benchmarks.gpu.faults", str(subject.folder)]
    done = subprocess.run(
        [*command, subject.device.name], capture_output=True, text=True, timeout=LOST_TIMEOUT
    )
    ok = done.returncode == 0 and "MemoryError" not in done.stdout
    return {"exit_status": done.returncode, "output": done.stdout, "ok": ok}


async def _lose(subject: Subject) -> None:
    assert subject.gpu is not None
    async with engine(subject, "fp32") as loaded:
        await loaded.infer(list(noise(1)))
        Library(subject.gpu).lose()
        failed = 0
        for _ in range(2):
            try:
                await loaded.infer(list(noise(1)))
            except Exception as error:  # noqa: BLE001  # the report shows it
                failed += 1
                print(f"{type(error).__name__}: {str(error)[:300]}")
    if failed != 2:
        sys.exit("a batch was computed after the GPU was lost")


if __name__ == "__main__":
    import pathlib

    from benchmarks.gpu.subject import prepare

    path, device = sys.argv[1:]
    asyncio.run(_lose(prepare(pathlib.Path(path), device, pathlib.Path(path))))
