"""What a running service holds: the engine, its batcher, the decoders; from start to drained.

Loading happens beside the listening server, so that probes are answered meanwhile: `/healthz`
says live and `/readyz` says not ready. A model that cannot be loaded or warmed ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from batching import Batcher, BatchReport, Draining, EngineDead, LatencyTable
from model_store.device import Device
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest
from service.budget import Budget
from service.decoders import Decoders
from service.errors import NotReady
from service.logs import log
from service.settings import Settings
from service.watchdog import watched

DEAD = 4
"""Exit status of a process whose engine died."""


class Engine(Protocol):
    """What is needed of an engine; `model_store.engine.GluonEngine` is one."""

    @property
    def model(self) -> Manifest: ...

    @property
    def device(self) -> Device: ...

    @property
    def warm_up_seconds(self) -> Mapping[int, Sequence[float]]: ...

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]: ...


LoadEngine = Callable[[Settings], AbstractAsyncContextManager[Engine]]


@dataclass(frozen=True, slots=True)
class Ready:
    """The parts that answer requests, loaded and warm."""

    engine: Engine
    latency: LatencyTable
    batcher: Batcher[Image, Probabilities]


class Serving:
    """Brings the parts up and takes them down; `ready` has them in between."""

    def __init__(
        self,
        settings: Settings,
        load_engine: LoadEngine,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.decoders = Decoders(settings.decode_threads, settings.max_image_pixels)
        self.uploads = Budget(settings.max_upload_memory)
        self.draining = False
        """On the way out: whoever chooses among servers should choose another."""
        self.failure: Exception | None = None
        """Why the model cannot be served, if so."""
        self.started: Ready | None = None
        """The parts, once they are loaded and warm."""
        self._settings = settings
        self._load_engine = load_engine
        self._on_batch = on_batch

    @property
    def ready(self) -> Ready:
        """Raises NotReady."""
        if self.started is None:
            raise NotReady
        return self.started

    @property
    def available(self) -> Ready:
        """Raises NotReady, or Draining: what a readiness probe is told."""
        ready = self.ready
        if self.draining:
            raise Draining("shutting down", retry_after=1)
        return ready

    @property
    def live(self) -> bool:
        """False: only a new process helps."""
        return self.started is None or self.started.batcher.healthy

    @property
    def dead(self) -> bool:
        """The engine did not come back and was given up."""
        return isinstance(self.failure, EngineDead)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load in the background; on the way out drain the batcher, then close the engine, in
        `shutdown_timeout` seconds at most: an engine that hangs ends the process."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop))
        try:
            yield
        finally:
            stop.set()
            patience = 0 if self.dead else self._settings.shutdown_timeout
            _, hung = await asyncio.wait({task}, timeout=patience)
            if hung:
                log.error("the engine does not come back; leaving without it")
                os._exit(DEAD if self.dead else 1)  # nothing less ends a thread that hangs
            self.decoders.close()

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            await self._serve_until(stop)
        except Exception as error:  # noqa: BLE001  # without a model no process may linger
            self.failure = error
            signal.raise_signal(signal.SIGTERM)

    def _give_up(self) -> None:
        """Everybody has been told; now answer them, and leave so that another takes our place."""
        self.failure = EngineDead("it did not come back from a batch")
        log.critical("the engine is dead: %s; leaving", self.failure)
        signal.raise_signal(signal.SIGTERM)

    async def _serve_until(self, stop: asyncio.Event) -> None:
        settings, started = self._settings, time.perf_counter()
        async with self._load_engine(settings) as engine:
            latency = LatencyTable(engine.warm_up_seconds)
            async with (
                Batcher(
                    engine.infer,
                    latency=latency,
                    max_batch_size=latency.largest,
                    max_queue_size=settings.max_queue_size,
                    max_queue_delay=settings.max_queue_delay,
                    max_in_flight=settings.max_in_flight
                    or (1 if engine.device.name == "cpu" else 2),
                    on_batch=self._on_batch,
                ) as batcher,
                watched(batcher, self._give_up),
            ):
                self.started = Ready(engine, latency, batcher)
                seconds = round(time.perf_counter() - started, 3)
                log.info("ready", extra={"fields": _told(engine) | {"seconds": seconds}})
                await stop.wait()


def _told(engine: Engine) -> dict[str, str]:
    return {
        "model": engine.model.name,
        "version": engine.model.version,
        "device": engine.device.name,
        "device_reason": engine.device.reason,
    }
