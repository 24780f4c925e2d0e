"""Everything that a process needs to answer requests, in one typed object.

The engine and the decoders are in this process (`model_host`, `decoding.pool`) or in another one
(`workers.engine_client`); the code that uses a `Service` cannot tell. The model is loaded while the
server is already listening, so probes are answered meanwhile: `/healthz` says live and `/readyz`
says not ready.

Another version of the model may replace the one that serves at any time. Each classification
therefore names the model that computed it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from batching import Answer, Draining
from model_store.device import Device
from model_store.engine import Image, Probabilities
from model_store.manifest import Identity, Manifest
from model_store.precision import Precision
from service.decoding.image import EncodedImage, Pixels
from service.errors import DecodersDown, NotReady, Stalled, Unloaded
from service.http.api_keys import ApiKeys
from service.rate_limit import Client, RateLimiter
from service.settings import Settings
from service.telemetry.engine_stats import EngineStats
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing
from service.upload.body import UploadMemory


@dataclass(frozen=True, slots=True)
class Classification:
    """What a version of a model computed for one image."""

    model: Manifest
    probabilities: Probabilities
    """float32, one for each class of `model`, in their order."""


Submit = Callable[[Image, float], Coroutine[Any, Any, Answer[Classification]]]
"""`submit(image, timeout)` classifies one image within `timeout` seconds. Raises NotReady, and what
`Batcher.submit` raises."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded and warm, and what it runs on."""

    model: Manifest
    device: Device
    precision: Precision
    submit: Submit


class Engine(Protocol):
    """The model and its batcher, in this process or in another one."""

    @property
    def loaded(self) -> LoadedModel | None:
        """None: no model is loaded, or the engine process cannot be reached."""

    @property
    def unloaded(self) -> bool:
        """Whether no model is loaded because an operator unloaded it."""

    @property
    def failure(self) -> Exception | None:
        """Why the model cannot be served. If it is not None, the process ends."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Within the block the engine works; at its end the engine drains."""

    async def stats(self) -> EngineStats | None:
        """None if no model is loaded. Raises TimeoutError if the engine does not respond."""


class Decoding(Protocol):
    """The decoder processes. `service.decoding.pool.Decoders` is one implementation."""

    @property
    def max_memory(self) -> int:
        """Maximum number of bytes that decoding one image may take."""

    @property
    def descriptors(self) -> int:
        """File descriptors of this process that the decoders may take."""

    @property
    def is_down(self) -> bool:
        """Whether decoder processes cannot be started."""

    @property
    def waiting(self) -> int:
        """Number of this process' images that wait for a decoder."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Within the block images are decoded."""

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """Decode `image` for `client` within `max_seconds`. Raises what `Decoders.run` raises."""


class Versions(Protocol):
    """The model repository. `service.inference.repository.Repository` is one implementation."""

    async def load(self, name: str, version: str | None = None) -> Identity: ...

    async def unload(self, name: str) -> Identity: ...

    async def reload(self) -> Identity: ...

    async def index(self) -> list[dict[str, str]]: ...


@dataclass(slots=True, eq=False)
class Service:
    """The parts of one process that answers requests. `service_of` finds it."""

    settings: Settings
    engine: Engine
    decoders: Decoding
    repository: Versions
    uploads: UploadMemory
    keys: ApiKeys
    """API keys of the clients that may classify images."""
    admin_keys: ApiKeys
    """API keys of the operators that may load and unload models."""
    rate_limiter: RateLimiter | None
    """None: clients may send any number of images."""
    metrics: Metrics
    tracing: Tracing | None
    """None: no traces are sent."""
    draining: bool = False
    """Whether the server is shutting down, so that clients should choose another one."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within the block images are decoded and computed; at its end the engine drains."""
        async with self.decoders.running(), self.engine.running():
            yield

    @property
    def loaded(self) -> LoadedModel:
        """The model that serves. Raises NotReady or Unloaded, which is a NotReady."""
        loaded = self.engine.loaded
        if loaded is None:
            raise self.not_loaded()
        return loaded

    def not_loaded(self) -> NotReady:
        """The error for requests while no model is loaded."""
        return Unloaded() if self.engine.unloaded else NotReady()

    async def check_ready(self) -> tuple[LoadedModel, EngineStats | None]:
        """The answer to a readiness probe.

        Raises Draining, NotReady, and its subclasses Unloaded, Stalled, DecodersDown.
        """
        loaded = self.loaded
        if self.draining:
            raise Draining
        if self.decoders.is_down:
            raise DecodersDown
        try:
            stats = await self.engine.stats()
        except TimeoutError:
            raise Stalled from None
        if stats is not None and stats.stalled:
            raise Stalled
        return loaded, stats

    async def is_live(self) -> bool:
        """The answer to a liveness probe. False: only a restart of the process helps."""
        try:
            stats = await self.engine.stats()
        except TimeoutError:
            return False
        return stats is None or stats.healthy

    async def engine_stats(self) -> EngineStats | None:
        """For metrics. None if no model is loaded, or if the engine does not respond."""
        try:
            return await self.engine.stats()
        except TimeoutError:
            return None
