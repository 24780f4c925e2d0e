"""Runs the engine and its batcher in this process, from loading the model to the shutdown.

The engine runs the model on batches. The batcher collects images of concurrent requests into
batches. The model is loaded in the background, so the process can respond to probes (health checks)
during the load. If the load fails, the process can never become ready, so the module calls
`on_failure` to end the process.

Another version of the model can replace the current version at any time. The batcher keeps the
requests in its queue, and the next batch runs on the new version.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from batching import Batcher, BatchReport, Draining, EngineDead, LatencyTable
from model_store.backend import BackendChoice
from model_store.device import Device, GpuMemory
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest
from model_store.precision import Precision
from service.errors import ChangeUnderWay, NotReady, Unloaded
from service.exit_status import ExitStatus
from service.inference.pipeline import classifier
from service.inference.service import Classification, LoadedModel
from service.settings import Settings
from service.telemetry.engine_stats import EngineStats
from service.telemetry.logs import log
from service.telemetry.tracing import Tracing

WATCH_INTERVAL = 1.0
"""Seconds between two checks of the engine's health."""


class Engine(Protocol):
    """Runs batches. `model_store.engine.LaneEngine` documents the members."""

    @property
    def model(self) -> Manifest: ...

    @property
    def device(self) -> Device: ...

    @property
    def backend(self) -> BackendChoice: ...

    @property
    def lanes(self) -> int: ...

    @property
    def max_in_flight(self) -> int: ...

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


class BatchMetrics(Protocol):
    """Counts batches. `service.telemetry.metrics.Metrics` is one implementation."""

    def count_batch(self, report: BatchReport) -> None: ...

    def count_assembly(self, seconds: float) -> None: ...


LoadEngine = Callable[[Settings], AbstractAsyncContextManager[Engine]]
"""A function that returns a context manager. Entering the context loads the engine, and leaving the
context closes the engine."""


class ModelHost:
    """Runs one model, with one version loaded at a time."""

    def __init__(
        self,
        settings: Settings,
        load_engine: LoadEngine,
        metrics: BatchMetrics,
        on_failure: Callable[[], None],
        on_change: Callable[[], None] = lambda: None,
        on_failing: Callable[[], None] = lambda: None,
        tracing: Tracing | None = None,
    ) -> None:
        """
        Args:
            settings: The settings with the limits of the queue, the batches and the shutdown.
            load_engine: Loads the engine with the model in the settings.
            metrics: Counts the batches.
            on_failure: Called once if the model cannot be loaded or the engine is dead. The
                attribute `failure` then contains the reason.
            on_change: Called each time `loaded` has changed.
            on_failing: Called once per second while every recent batch has failed.
            tracing: Traces the batches. None: batches are not traced.
        """
        self.loaded: LoadedModel | None = None
        """The loaded model. None: no model is loaded."""
        self.unloaded = False
        """Whether no model is loaded because an operator unloaded it."""
        self.failure: Exception | None = None
        """The reason why the process must end. None: the process need not end."""
        self.loading: str | None = None
        """The version that is being loaded to replace the current version. None: no version is
        being loaded."""
        self._settings = settings
        self._load_engine = load_engine
        self._metrics = metrics
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
        """Whether the engine did not finish a batch in time and is not used any more."""
        return isinstance(self.failure, EngineDead)

    @property
    def batcher(self) -> Batcher[Image, Classification]:
        """The batcher of the loaded model.

        Raises NotReady if no model is loaded, and its subclass Unloaded if an operator unloaded it.
        """
        if self.loaded is None or self._batcher is None:
            raise Unloaded if self.unloaded else NotReady
        return self._batcher

    async def stats(self) -> EngineStats | None:
        """Return the state of the engine and the batcher, or None if no model is loaded."""
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
        """Load the version in `folder`, and replace the current version between two batches.

        If the load fails, the current version stays.

        Args:
            folder: Folder of the version in the model store.

        Returns:
            The manifest of the new version.

        Raises:
            ChangeUnderWay: A version is already being loaded or unloaded.
            NotReady: The model is still being loaded at startup.
            Draining: The process is shutting down.
            Exception: The engine cannot load the version.
        """
        async with self._changing() as engine:
            began, before = time.perf_counter(), self.loaded
            self.loading = folder.name
            try:
                await engine.replace(folder, on_switch=lambda: self._switch(engine))
            finally:
                self.loading = None
            if self._batcher is None:
                await self._start_batcher(engine)
            fields = {"before": before.model.version} if before else {}
            log.info("switched", extra={"fields": _log_fields(engine, began) | fields})
            return engine.model

    async def unload(self) -> Manifest:
        """Unload the model and free its memory, after all accepted requests have finished.

        New requests are rejected with Unloaded until the next call of `replace`. Returns the
        manifest of the unloaded version. Raises ChangeUnderWay, NotReady, Draining.
        """
        async with self._changing() as engine:
            if self.loaded is None:
                raise Unloaded
            model = self.loaded.model
            self.unloaded = True
            self.loaded = None
            self._on_change()
            await self._open.aclose()  # drains the batcher
            self._batcher = None
            await engine.unload()
            log.info("unloaded", extra={"fields": {"model": model.name, "version": model.version}})
            return model

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context manager that loads the model in the background, and closes the engine on exit.

        All accepted requests finish before the engine is closed. If the requests take longer than
        the setting `shutdown_timeout`, the process exits immediately.
        """
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
                log.error("the engine did not stop within the shutdown timeout; the process exits")
                logging.shutdown()
                # Python cannot end a thread that hangs. A normal exit would wait for the thread.
                os._exit(ExitStatus.ENGINE_DEAD if self.dead else ExitStatus.FAILED)

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            await self._serve_until(stop)
        except Exception as error:  # noqa: BLE001  # `exit_status` logs it
            self.failure = error
            self._on_failure()

    async def _serve_until(self, stop: asyncio.Event) -> None:
        began = time.perf_counter()
        async with self._load_engine(self._settings) as engine, self._open:
            engine.on_assembled = self._metrics.count_assembly
            await self._start_batcher(engine)
            self._engine = engine
            log.info("ready", extra={"fields": _log_fields(engine, began)})
            await stop.wait()
            await self._change.acquire()  # waits for a load or unload in progress

    async def _start_batcher(self, engine: Engine) -> None:
        settings, infer = self._settings, classifier(engine)
        self._latency = latency = LatencyTable(engine.warm_up_seconds)
        batcher = Batcher(
            self._tracing.batches(infer) if self._tracing else infer,
            latency=latency,
            max_batch_size=latency.largest,
            max_queue_size=settings.max_queue_size,
            max_queue_delay=settings.max_queue_delay,
            max_in_flight=engine.max_in_flight,
            lanes=engine.lanes,
            on_batch=self._metrics.count_batch,
        )
        self._batcher = await self._open.enter_async_context(batcher)
        await self._open.enter_async_context(self._watching(batcher))
        self.unloaded = False
        self._set_loaded(engine, batcher)

    def _switch(self, engine: Engine) -> None:
        """Use the new version from the next batch on.

        The engine calls this method between two batches. The latencies of the new version were
        measured during its warm-up.
        """
        if self._batcher is not None:
            self._latency = LatencyTable(engine.warm_up_seconds)
            self._batcher.switch(self._latency)
            self._set_loaded(engine, self._batcher)

    def _set_loaded(self, engine: Engine, batcher: Batcher[Image, Classification]) -> None:
        self.loaded = LoadedModel(
            engine.model, engine.device, engine.backend, engine.precision, batcher.submit
        )
        self._on_change()

    @asynccontextmanager
    async def _watching(self, batcher: Batcher[Any, Any]) -> AsyncIterator[None]:
        """Context manager that checks the health of the engine every `WATCH_INTERVAL`.

        If the engine is dead, all requests in progress get an error and the process ends. If the
        engine keeps failing, `on_failing` is called.
        """

        async def watch() -> None:
            while not batcher.engine_is_dead():
                if not batcher.healthy:
                    self._on_failing()
                await asyncio.sleep(WATCH_INTERVAL)
            try:
                batcher.abandon()
            finally:
                self._give_up()

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()

    def _give_up(self) -> None:
        """End the process, because the engine is dead. All requests in progress already got an
        error."""
        self.failure = EngineDead("the engine did not finish a batch")
        log.critical("the engine is dead: %s; the process exits", self.failure)
        self._on_failure()

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Engine]:
        """Context manager for a load or unload. Until the exit, another load or unload is rejected.

        Raises Draining during the shutdown, NotReady during the startup, and ChangeUnderWay if
        another load or unload is in progress.
        """
        if self._stopping:
            raise Draining
        if self._engine is None:
            raise NotReady
        if self._change.locked():
            raise ChangeUnderWay
        async with self._change:
            yield self._engine


def exit_status(failure: Exception | None) -> ExitStatus:
    """Log `failure`, and return the exit status of the process.

    `failure` is the reason why the engine ended. None: the engine ended normally.
    """
    if failure is None:
        return ExitStatus.STOPPED
    if isinstance(failure, EngineDead):
        return ExitStatus.ENGINE_DEAD  # logged already
    log.error("the model cannot be loaded: %s", failure)
    return ExitStatus.FAILED


def _log_fields(engine: Engine, began: float) -> dict[str, str | float]:
    return {
        "model": engine.model.name,
        "version": engine.model.version,
        "device": engine.device.name,
        "device_reason": engine.device.reason,
        "backend": engine.backend.name,
        "backend_reason": engine.backend.reason,
        "precision": engine.precision.name,
        "precision_reason": engine.precision.reason,
        "seconds": round(time.perf_counter() - began, 3),
    }
