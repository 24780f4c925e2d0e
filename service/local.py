"""An engine in this process, and its batcher; from start to drained.

Loading happens beside whatever else the process does. A model that cannot be loaded or warmed is
told to `on_failure`: no process may linger that can never be ready.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from batching import Answer, Batcher, BatchReport, LatencyTable
from model_store.device import Device
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest
from service.errors import NotReady
from service.figures import Figures
from service.logs import log
from service.serving import Classified, Ready
from service.settings import Settings


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


def _nothing() -> None:
    pass


class Local:
    def __init__(
        self,
        settings: Settings,
        load_engine: LoadEngine,
        on_batch: Callable[[BatchReport], None],
        on_failure: Callable[[], None],
        on_change: Callable[[], None] = _nothing,
    ) -> None:
        """`on_change` is called when `ready` has become another."""
        self.ready: Ready | None = None
        self.failure: Exception | None = None
        """Why the model cannot be served, if so."""
        self._settings = settings
        self._load_engine = load_engine
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._on_change = on_change
        self._latency: LatencyTable | None = None
        self._batcher: Batcher[Image, Classified] | None = None

    @property
    def batcher(self) -> Batcher[Image, Classified]:
        """Raises NotReady."""
        if self.ready is None or self._batcher is None:
            raise NotReady
        return self._batcher

    async def submit(
        self,
        image: Image,
        timeout: float,  # noqa: ASYNC109 - foreseen, not only enforced
    ) -> Answer[Classified]:
        return await self.batcher.submit(image, timeout)

    async def figures(self) -> Figures | None:
        batcher, latency = self._batcher, self._latency
        if batcher is None or latency is None:
            return None
        return Figures(
            healthy=batcher.healthy,
            queued=batcher.queued,
            in_flight=batcher.in_flight,
            busy_seconds=batcher.busy_seconds,
            size_limit=batcher.size_limit,
            margin=batcher.margin,
            expected={str(size): seconds for size, seconds in latency.as_dict().items()},
        )

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
            _, hung = await asyncio.wait({task}, timeout=self._settings.shutdown_timeout)
            if hung:
                log.error("the engine does not come back; leaving without it")
                os._exit(1)  # nothing less ends a thread that hangs

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            await self._serve_until(stop)
        except Exception as error:  # noqa: BLE001  # told once the process has stopped
            self.failure = error
            self._on_failure()

    async def _serve_until(self, stop: asyncio.Event) -> None:
        settings, began = self._settings, time.perf_counter()
        async with self._load_engine(settings) as engine:

            async def infer(images: Sequence[Image]) -> Sequence[Classified | Exception]:
                return [
                    row if isinstance(row, Exception) else Classified(engine.model, row)
                    for row in await engine.infer(images)
                ]

            self._latency = latency = LatencyTable(engine.warm_up_seconds)
            async with Batcher(
                infer,
                latency=latency,
                max_batch_size=latency.largest,
                max_queue_size=settings.max_queue_size,
                max_queue_delay=settings.max_queue_delay,
                max_in_flight=settings.max_in_flight or (1 if engine.device.name == "cpu" else 2),
                on_batch=self._on_batch,
            ) as self._batcher:
                self.ready = Ready(engine.model, engine.device.name, engine.device.reason)
                self._on_change()
                log.info("ready", extra={"fields": _told(engine, began)})
                await stop.wait()


def _told(engine: Engine, began: float) -> dict[str, str | float]:
    return {
        "model": engine.model.name,
        "version": engine.model.version,
        "device": engine.device.name,
        "device_reason": engine.device.reason,
        "seconds": round(time.perf_counter() - began, 3),
    }
