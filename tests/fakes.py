"""An engine that follows a rule, for tests without MXNet, and a clock that tests set."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import numpy as np

from model_store import versions
from model_store.backend import BackendChoice
from model_store.device import Device, GpuMemory
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest, Normalization, Parameters
from model_store.precision import Precision
from model_store.training import cifar10
from service.settings import Settings
from service.telemetry.logs import log

MODEL = Manifest(
    name="fake",
    version="7",
    architecture="cifar_resnet20_v1",
    classes=cifar10.CLASSES,
    normalisation=Normalization(mean=cifar10.MEAN, std=cifar10.STD),
    parameters=Parameters(file="net.params", bytes=1, sha256="0" * 64),
)


class FakeEngine:
    """Classifies an image by its first red value modulo ten, with probability 0.91."""

    device = Device("cpu", "as requested")
    backend = BackendChoice("mxnet", "as requested")
    precision = Precision("fp32", "this version is not calibrated for int8")
    lanes = 1
    max_in_flight = 1  # so that a test knows which batch it holds
    gpu_memory: GpuMemory | None = None
    on_assembled: Callable[[float], None] | None = None

    def __init__(
        self,
        seconds: float = 0.0,
        error: Exception | None = None,
        warm_up_seconds: float | None = None,
    ) -> None:
        self.model = MODEL
        self.seconds = seconds
        self.error = error
        self.warm_up_seconds: Mapping[int, Sequence[float]] = {
            size: [warm_up_seconds or seconds or 1e-4] * 3 for size in (1, 2, 4, 8)
        }
        self.batches: list[int] = []
        self.called, self.goes_on = asyncio.Event(), asyncio.Event()
        self.goes_on.set()
        self.loading, self.loaded = asyncio.Event(), asyncio.Event()
        self.loaded.set()
        self.load_error: Exception | None = None
        self.unloaded = False

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]:
        self.batches.append(len(images))
        self.called.set()
        if self.on_assembled is not None:
            self.on_assembled(1e-6)
        log.info("batch", extra={"fields": {"size": len(images)}})
        await self.computing()
        if self.error:
            raise self.error
        rows = np.full((len(images), 10), 0.01, dtype=np.float32)
        rows[range(len(images)), [int(image[0, 0, 0]) % 10 for image in images]] = 0.91
        return list(rows)

    async def computing(self) -> None:
        """Takes `seconds` for a batch, and waits until `goes_on` is set."""
        if self.seconds:
            await asyncio.sleep(self.seconds)
        await self.goes_on.wait()

    async def replace(self, folder: pathlib.Path, on_switch: Callable[[], None]) -> None:
        """Takes over the manifest in `folder` once `loaded` is set, or raises `load_error`."""
        model = versions.read_manifest(folder)
        self.loading.set()
        await self.loaded.wait()
        if self.load_error:
            raise self.load_error
        self.model = model
        on_switch()

    async def unload(self) -> None:
        self.unloaded = True

    @asynccontextmanager
    async def load(self, settings: Settings) -> AsyncIterator[FakeEngine]:
        yield self


class Clock:
    """A clock that returns `now`."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
