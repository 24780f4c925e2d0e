"""Runs the service with a simulated device that needs no CPU time, like a small GPU.

    python -m benchmarks.simulated_device

For each batch, the device sleeps 1 ms and another 0.02 ms for each image. So all CPU cores are free
for the service's other processes and for the load generator.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from benchmarks.free_engine import ROW, FreeEngine
from model_store.device import Device
from model_store.engine import Image, Probabilities
from service.__main__ import main
from service.settings import Settings

BATCH_SECONDS, IMAGE_SECONDS = 0.001, 0.00002
BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def seconds(size: int) -> float:
    """Returns the seconds that a batch of `size` images takes."""
    return BATCH_SECONDS + IMAGE_SECONDS * size


class SimulatedDevice(FreeEngine):
    """An engine that runs one batch at a time. For each batch, a thread sleeps."""

    device = Device("gpu", "simulated")
    max_in_flight = 1

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        """
        Args:
            thread: Executor with one thread, on which the engine sleeps.
        """
        self._thread = thread

    @property
    def warm_up_seconds(self) -> dict[int, list[float]]:
        return {size: [seconds(size)] * 3 for size in BUCKETS}

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, time.sleep, seconds(len(images)))
        return [ROW] * len(images)


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[SimulatedDevice]:
    """Yields the engine. This function replaces `service.app.load_engine`."""
    with ThreadPoolExecutor(1) as thread:
        yield SimulatedDevice(thread)


if __name__ == "__main__":
    sys.exit(main("benchmarks.simulated_device:load"))
