"""Served: the backends that can be measured here, and what their engines take until they are ready.

ONNX Runtime's backend uses OpenVINO in int8 if it is installed. Both ways are measured.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from model_store import backends
from model_store.manifest import BackendName, Manifest, PrecisionName
from model_store.onnx import openvino
from model_store.precision import is_offered

ROOT = pathlib.Path(__file__).parent.parent
OPENVINO = "openvino"
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "int8")
STARTS = 3
"""Number of processes in which the start of each engine is measured."""


@dataclass(frozen=True)
class Served:
    """A backend in a precision."""

    backend: BackendName
    precision: PrecisionName
    openvino: bool = False
    """Whether OpenVINO is used."""

    def __str__(self) -> str:
        with_openvino = " with OpenVINO" if self.openvino else ""
        return f"{self.backend}{with_openvino} {self.precision}"


@dataclass(frozen=True)
class Start:
    """What an engine takes until it is ready, with the server's default settings.

    Imports are included.
    """

    seconds: float
    cpu: float
    """CPU seconds of all threads."""
    memory: float
    """Resident memory of the process in MB, when the engine is ready."""


def all_served(model: Manifest) -> list[Served]:
    """Return what can be measured here. In each precision, the first is what the others are
    compared with."""
    found = []
    for precision in PRECISIONS:
        for backend in backends.able(model):
            if is_offered(precision, model, backend):
                found.append(Served(backend, precision))
                if (backend, precision) == ("onnxruntime", "int8") and openvino.is_useful(
                    precision, "cpu"
                ):
                    found.append(Served(backend, precision, openvino=True))
    return found


@contextmanager
def openvino_hidden(hidden: bool) -> Iterator[None]:
    """Make OpenVINO appear not installed during the block, if `hidden`."""
    loaded = sys.modules.get(OPENVINO)
    if hidden:
        sys.modules[OPENVINO] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[OPENVINO]
            if loaded is not None:
                sys.modules[OPENVINO] = loaded


def start(folder: pathlib.Path, served: Served) -> Start:
    """Measure a start in `STARTS` new processes. Return the smallest values."""
    code = f"""
import time; began = time.perf_counter()
import asyncio, pathlib, sys
if not {served.openvino}: sys.modules["{OPENVINO}"] = None
from model_store.engine import load_engine
async def main():
    folder = pathlib.Path({str(folder.absolute())!r})
    async with load_engine(
        folder, "cpu", precision={served.precision!r}, lanes=None, backend={served.backend!r}
    ):
        seconds, cpu = time.perf_counter() - began, time.process_time()
        status = pathlib.Path("/proc/self/status").read_text()
        print(seconds, cpu, int(status.partition("VmRSS:")[2].split()[0]) / 1000)
asyncio.run(main())
"""
    results = []
    for _ in range(STARTS):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        results.append([float(number) for number in done.stdout.split()])
    return Start(*(min(values) for values in zip(*results, strict=True)))
