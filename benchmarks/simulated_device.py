"""The service with a device that sleeps: 1 ms a batch and 0.02 ms an image, as a small GPU might.

    python -m benchmarks.simulated_device

The cores are then for the front ends and for whoever asks them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np

from model_store.cifar10 import CLASSES, MEAN, STD
from model_store.device import Device
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest, Normalisation, Parameters
from service.__main__ import main
from service.settings import Settings

BATCH_SECONDS, IMAGE_SECONDS = 0.001, 0.00002
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
ROW = np.array([0.91 if name == "horse" else 0.01 for name in CLASSES], np.float32)


def seconds(size: int) -> float:
    """What a batch takes."""
    return BATCH_SECONDS + IMAGE_SECONDS * size


class SimulatedDevice:
    """Takes one batch at a time, on a thread of its own, like the real engine."""

    model = Manifest(
        name="simulated",
        version="1",
        architecture="cifar_resnet20_v1",
        classes=CLASSES,
        normalisation=Normalisation(mean=MEAN, std=STD),
        parameters=Parameters(file="net.params", bytes=1, sha256="0" * 64),
    )
    device = Device(None, "gpu", "simulated")
    warm_up_seconds = {size: [seconds(size)] * 3 for size in BUCKETS}  # noqa: RUF012

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, time.sleep, seconds(len(images)))
        return [ROW] * len(images)


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[SimulatedDevice]:
    with ThreadPoolExecutor(1) as thread:
        yield SimulatedDevice(thread)


if __name__ == "__main__":
    sys.exit(main("benchmarks.simulated_device:load"))
