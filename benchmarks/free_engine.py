"""Runs the service with an engine that takes no CPU time, to measure the rest of the service.

python -m benchmarks.free_engine
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np

from model_store.backend import BackendChoice
from model_store.device import Device, GpuMemory
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest, Normalization, Parameters
from model_store.precision import Precision
from model_store.training.cifar10 import CLASSES, MEAN, STD
from service.__main__ import main
from service.settings import Settings

ROW = np.array([0.91 if name == "horse" else 0.01 for name in CLASSES], dtype=np.float32)


class FreeEngine:
    """An engine that returns the same probabilities for every image, without any computation."""

    model = Manifest(
        name="free",
        version="1",
        architecture="cifar_resnet20_v1",
        classes=CLASSES,
        normalisation=Normalization(mean=MEAN, std=STD),
        parameters=Parameters(file="net.params", bytes=1, sha256="0" * 64),
    )
    device = Device("cpu", "as requested")
    backend = BackendChoice("mxnet", "as requested")
    precision = Precision("fp32", "as requested")
    lanes = 1
    max_in_flight = 2
    gpu_memory: GpuMemory | None = None
    on_assembled: Callable[[float], None] | None = None

    @property
    def warm_up_seconds(self) -> dict[int, list[float]]:
        return {size: [1e-4] * 3 for size in (1, 2, 4, 8, 16)}

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        return [ROW] * len(images)

    async def replace(self, folder: pathlib.Path, on_switch: Callable[[], None]) -> None:
        raise NotImplementedError

    async def unload(self) -> None:
        raise NotImplementedError


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[FreeEngine]:
    """Yields the engine. This function replaces `service.app.load_engine`."""
    yield FreeEngine()


if __name__ == "__main__":
    sys.exit(main("benchmarks.free_engine:load"))
