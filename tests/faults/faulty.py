"""The real service with an engine whose faults the images select.

The first red value of an image is its class, as with any FakeEngine. The first green value is the
fault of its batch. When the service stops, it logs the longest time that the event loop was held
(in CPU seconds, so that other work on the machine does not count), the number of full garbage
collections, and the number of objects in reference cycles.

Run it as `python -m tests.faults.faulty`.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import numpy as np

from batching import watchdog
from model_store.engine import Image, Probabilities
from service.__main__ import serve
from service.app import create_app
from service.settings import Settings, load_settings
from service.telemetry.logs import configure, log
from tests.fakes import FakeEngine

FAULTY = ("-m", "tests.faults.faulty")
LOOK = 0.005


class Fault(enum.IntEnum):
    NONE = 0
    RAISES = 1
    NOT_A_NUMBER = 2
    """As LaneEngine does: an exception in place of that row."""
    OUT_OF_MEMORY = 3
    """Fails if the batch has more than one item."""
    TOO_FEW = 4
    """Returns too few results."""
    HANGS = 5
    DIES = 6
    """Kills the whole process with SIGKILL."""


class FaultyEngine(FakeEngine):
    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        faults = [Fault(int(image[0, 0, 1])) for image in images]
        rows = list(await super().infer(images))
        if Fault.DIES in faults:
            os.kill(os.getpid(), signal.SIGKILL)
        if Fault.HANGS in faults:
            await asyncio.Event().wait()
        if Fault.RAISES in faults:
            raise RuntimeError("secret innards")
        if Fault.OUT_OF_MEMORY in faults and len(images) > 1:
            raise MemoryError("secret innards")
        if Fault.TOO_FEW in faults:
            return rows[1:]
        return [
            ArithmeticError("secret innards") if fault is Fault.NOT_A_NUMBER else row
            for fault, row in zip(faults, rows, strict=True)
        ]


@contextmanager
def watched_loop() -> Iterator[None]:
    """Watches the event loop for the duration of the block, then logs the longest time that it was
    held."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    longest, before = 0.0, time.thread_time()
    kept, began = _collected(), _full_collections()

    def look() -> None:
        nonlocal longest, before, timer
        now = time.thread_time()
        longest, before = max(longest, now - before), now
        timer = loop.call_later(LOOK, look)

    timer = loop.call_later(LOOK, look)
    try:
        yield
    finally:
        timer.cancel()
        told = {"held": longest, "full_collections": _full_collections() - began}
        told["kept_each_other"] = _collected() - kept
        log.info("the loop", extra={"fields": told})


def _full_collections() -> int:
    return int(gc.get_stats()[-1]["collections"])


def _collected() -> int:
    """Counts the objects in reference cycles so far."""
    gc.collect()
    return sum(generation["collected"] for generation in gc.get_stats())


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[FakeEngine]:
    watchdog.FLOOR = float(os.environ.get("ENGINE_DEAD_AFTER", watchdog.FLOOR))
    with watched_loop():
        yield FaultyEngine(float(os.environ.get("ENGINE_SECONDS", "0")), warm_up_seconds=0.001)


def picture(fault: Fault, red: int = 7) -> bytes:
    """Returns a BMP of one color, 32 x 32."""
    pixel = bytes([0, fault, red])  # blue, green, red
    size = 54 + 32 * 32 * 3
    head = b"BM" + np.array([size, 0, 54, 40, 32, 32], "<u4").tobytes()
    planes = np.array([1, 24], "<u2").tobytes()
    return head + planes + bytes(24) + pixel * 32 * 32


if __name__ == "__main__":
    settings = load_settings()
    configure(settings)
    sys.exit(serve(create_app(settings, load), settings))
