"""An engine in this process, and its batcher; from start to drained.

Loading happens beside whatever else the process does. A model that cannot be loaded or warmed at
the start is told to `on_failure`: no process may linger that can never be ready.

Later another version may take the place of the one that serves. The batcher and all who wait in
it stay; from one batch to the next another network computes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from batching import Answer, Batcher, BatchReport, Draining, EngineDead, LatencyTable, Outcomes
from model_store.device import Device, GpuMemory
from model_store.engine import Computed, Image, Probabilities
from model_store.manifest import Manifest
from model_store.precision import Precision
from service.errors import ChangeUnderWay, NotReady, Unloaded
from service.exit_status import ExitStatus
from service.inference.serving import Classification, LoadedModel
from service.inference.watchdog import watched
from service.settings import Settings
from service.telemetry.engine_stats import EngineStats
from service.telemetry.logs import log
from service.telemetry.tracing import Tracing


class Engine(Protocol):
    """What is needed of an engine; `model_store.engine.GluonEngine` is one."""

    @property
    def model(self) -> Manifest: ...

    @property
    def device(self) -> Device: ...

    @property
    def lanes(self) -> int: ...

    @property
    def precision(self) -> Precision: ...

    @property
    def warm_up_seconds(self) -> Mapping[int, Sequence[float]]: ...

    @property
    def gpu_memory(self) -> GpuMemory | None: ...

    on_assembled: Callable[[float], None] | None

    async def infer(self, images: Sequence[Image]) -> Sequence[Probabilities | Exception]: ...

    async def replace(self, folder: pathlib.Path, on_switch: Callable[[], None]) -> None: ...

    async def unload(self) -> None: ...


class Count(Protocol):
    """Is told of each batch."""

    def count_batch(self, report: BatchReport) -> None: ...

    def count_assembly(self, seconds: float) -> None: ...


LoadEngine = Callable[[Settings], AbstractAsyncContextManager[Engine]]


def _nothing() -> None:
    pass


class ModelHost:
    def __init__(
        self,
        settings: Settings,
        load_engine: LoadEngine,
        count: Count,
        on_failure: Callable[[], None],
        on_change: Callable[[], None] = _nothing,
        on_failing: Callable[[], None] = _nothing,
        tracing: Tracing | None = None,
    ) -> None:
        """`on_change` is called when `started` has become another, `on_failing` while the engine
        fails on every recent batch."""
        self.started: LoadedModel | None = None
        self.unloaded = False
        self.failure: Exception | None = None
        """Why the model cannot be served, if so."""
        self.loading: str | None = None
        """The version that is being loaded in place of the one that serves."""
        self._settings = settings
        self._load_engine = load_engine
        self._count = count
        self._on_failure = on_failure
        self._on_change = on_change
        self._on_failing = on_failing
        self._tracing = tracing
        self._engine: Engine | None = None
        self._latency: LatencyTable | None = None
        self._batcher: Batcher[Image, Classification] | None = None
        self._open = AsyncExitStack()
        self._change = asyncio.Lock()
        self._stopping = False

    @property
    def dead(self) -> bool:
        """The engine did not come back and was given up."""
        return isinstance(self.failure, EngineDead)

    @property
    def batcher(self) -> Batcher[Image, Classification]:
        """Raises NotReady, or Unloaded, which is one."""
        if self.started is None or self._batcher is None:
            raise Unloaded if self.unloaded else NotReady
        return self._batcher

    def submit(self, image: Image, timeout: float) -> Coroutine[Any, Any, Answer[Classification]]:
        return self.batcher.submit(image, timeout)

    async def figures(self) -> EngineStats | None:
        batcher, latency = self._batcher, self._latency
        if batcher is None or latency is None:
            return None
        return EngineStats(
            healthy=batcher.healthy,
            stalled=batcher.engine_is_stalled,
            queued=batcher.queued,
            in_flight=batcher.in_flight,
            busy_seconds=batcher.busy_seconds,
            size_limit=batcher.size_limit,
            margin=batcher.margin,
            expected={str(size): seconds for size, seconds in latency.as_dict().items()},
            gpu_memory=self._engine.gpu_memory if self._engine is not None else None,
        )

    async def replace(self, folder: pathlib.Path) -> Manifest:
        """Load the version in `folder` beside the one that serves, if one does, and let it take
        its place between two batches; what it is.

        Raises ChangeUnderWay, NotReady during the start, Draining, and what the engine raises
        about a version that it cannot serve: then nothing has changed.
        """
        async with self._changing() as engine:
            began, before = time.perf_counter(), self.started
            self.loading = folder.name
            try:
                await engine.replace(folder, on_switch=lambda: self._switch(engine))
            finally:
                self.loading = None
            if self._batcher is None:
                await self._start_batcher(engine)
            fields = {"before": before.model.version} if before else {}
            log.info("switched", extra={"fields": _told(engine, began) | fields})
            return engine.model

    async def unload(self) -> Manifest:
        """Refuse what is new with Unloaded, answer who was accepted, and free the memory, until
        the next `replace`; what was unloaded.

        Raises ChangeUnderWay, NotReady, Draining.
        """
        async with self._changing() as engine:
            if self.started is None:
                raise Unloaded
            model = self.started.model
            self.unloaded = True
            self._tell(None)
            await self._open.aclose()  # drains the batcher
            self._batcher = None
            await engine.unload()
            log.info("unloaded", extra={"fields": _identity(model)})
            return model

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load in the background; on the way out drain the batcher, then close the engine, in
        `shutdown_timeout` seconds at most: an engine that hangs ends the process."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop))
        try:
            yield
        finally:
            self._stopping = True
            stop.set()
            patience = 0 if self.dead else self._settings.shutdown_timeout
            _, hung = await asyncio.wait({task}, timeout=patience)
            if hung:
                log.error("the engine does not come back; leaving without it")
                logging.shutdown()
                # nothing less ends a thread that hangs
                os._exit(ExitStatus.ENGINE_DEAD if self.dead else ExitStatus.FAILED)

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            await self._serve_until(stop)
        except Exception as error:  # noqa: BLE001  # told once the process has stopped
            self.failure = error
            self._on_failure()

    def _give_up(self) -> None:
        """Everybody has been told; now answer them, and leave so that another takes our place."""
        self.failure = EngineDead("it did not come back from a batch")
        log.critical("the engine is dead: %s; leaving", self.failure)
        self._on_failure()

    async def _serve_until(self, stop: asyncio.Event) -> None:
        began = time.perf_counter()
        async with self._load_engine(self._settings) as engine, self._open:
            engine.on_assembled = self._count.count_assembly
            await self._start_batcher(engine)
            self._engine = engine
            log.info("ready", extra={"fields": _told(engine, began)})
            await stop.wait()
            await self._change.acquire()  # one that is under way ends, and no other begins

    async def _start_batcher(self, engine: Engine) -> None:
        async def infer(images: Sequence[Image]) -> Sequence[Classification | Exception]:
            model = engine.model  # no switch can come between this and the call
            rows = await engine.infer(images)
            classified = [
                row if isinstance(row, Exception) else Classification(model, row) for row in rows
            ]
            return Outcomes(classified, rows.done) if isinstance(rows, Computed) else classified

        settings = self._settings
        self._latency = latency = LatencyTable(engine.warm_up_seconds)
        batcher = Batcher(
            self._tracing.batches(infer) if self._tracing else infer,
            latency=latency,
            max_batch_size=latency.largest,
            max_queue_size=settings.max_queue_size,
            max_queue_delay=settings.max_queue_delay,
            max_in_flight=settings.max_in_flight or engine.lanes + 1,
            lanes=engine.lanes,
            on_batch=self._count.count_batch,
        )
        self._batcher = await self._open.enter_async_context(batcher)
        await self._open.enter_async_context(watched(batcher, self._give_up, self._on_failing))
        self.unloaded = False
        self._tell(LoadedModel(engine.model, engine.device, engine.precision))

    def _switch(self, engine: Engine) -> None:
        """Between two batches. What a batch takes is what the new version's warm-up took: under
        the very load that there is, on the same thread, and so nearer than anything that was
        learned of the old one."""
        if self._batcher is not None:
            self._latency = LatencyTable(engine.warm_up_seconds)
            self._batcher.switch(self._latency)
            self._tell(LoadedModel(engine.model, engine.device, engine.precision))

    def _tell(self, started: LoadedModel | None) -> None:
        self.started = started
        self._on_change()

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Engine]:
        """One at a time, and none on the way up or out."""
        if self._stopping:
            raise Draining
        if self._engine is None:
            raise NotReady
        if self._change.locked():
            raise ChangeUnderWay
        async with self._change:
            yield self._engine


def exit_status(failure: Exception | None) -> ExitStatus:
    """Of a process whose engine ended like that; the log says why the model cannot be served."""
    if failure is None:
        return ExitStatus.STOPPED
    if isinstance(failure, EngineDead):
        return ExitStatus.ENGINE_DEAD  # which has been told
    log.error("the model cannot be served: %s", failure)
    return ExitStatus.FAILED


def _identity(model: Manifest) -> dict[str, str]:
    return {"model": model.name, "version": model.version}


def _told(engine: Engine, began: float) -> dict[str, str | float]:
    return {
        **_identity(engine.model),
        "device": engine.device.name,
        "device_reason": engine.device.reason,
        "precision": engine.precision.name,
        "precision_reason": engine.precision.reason,
        "seconds": round(time.perf_counter() - began, 3),
    }
