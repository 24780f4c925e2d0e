"""Defines `Service`, the object with all parts that a process needs to handle requests.

The engine and the decoders run either in the process that accepts the requests (`model_host`,
`decoding.pool`) or in a separate engine process (`workers.engine_client`). This module defines the
interfaces for both cases.

The model is loaded after the server has started to listen. Until the model is loaded, `/healthz`
returns 200 and `/readyz` returns 503. Another version of the model can replace the current version
at any time, so each classification contains the model that produced it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from batching import Answer, Draining
from model_store.backend import BackendChoice
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
    """The result for one image."""

    model: Manifest
    """The model and version that produced the result."""
    probabilities: Probabilities
    """Probability of each class, in the order of `model.classes`: float32 of shape (classes,)."""


Submit = Callable[[Image, float], Coroutine[Any, Any, Answer[Classification]]]
"""A coroutine function `submit(image, timeout)` that classifies one image within `timeout` seconds.

`submit` raises NotReady if no model is loaded, and the exceptions of `Batcher.submit`."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is loaded and warmed up."""

    model: Manifest
    device: Device
    """The device that runs the model."""
    backend: BackendChoice
    """The library that runs the model."""
    precision: Precision
    """The precision of the model's computations, such as fp32 or int8."""
    submit: Submit
    """Classifies an image with the model."""


class Engine(Protocol):
    """The model and its batcher, in this process or in the engine process."""

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model. None: no model is loaded, or the engine process cannot be reached."""

    @property
    def unloaded(self) -> bool:
        """Whether no model is loaded because an operator unloaded it."""

    @property
    def failure(self) -> Exception | None:
        """The reason why the process must end. None: the process need not end."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Context manager that runs the engine.

        On exit, the context manager waits until all accepted requests have finished.
        """

    async def stats(self) -> EngineStats | None:
        """Return the state of the engine, or None if no model is loaded.

        Raises TimeoutError if the engine process does not respond.
        """


class Decoding(Protocol):
    """The decoder processes. `service.decoding.pool.Decoders` is one implementation."""

    @property
    def max_memory(self) -> int:
        """Maximum memory for decoding one image, in bytes."""

    @property
    def descriptors(self) -> int:
        """Maximum number of file descriptors of this process that the decoders use."""

    @property
    def is_down(self) -> bool:
        """Whether all decoder processes have ended, or no decoder process can be started."""

    @property
    def waiting(self) -> int:
        """Number of images of this process that wait for a decoder."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Context manager that runs the decoders."""

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """Decode `image` for `client` within `max_seconds` seconds.

        Raises the exceptions of `Decoders.run`.
        """


class Versions(Protocol):
    """Lists, loads and unloads versions of the model.

    `service.inference.repository.Repository` documents the methods.
    """

    async def load(self, name: str, version: str | None = None) -> Identity: ...

    async def unload(self, name: str) -> Identity: ...

    async def reload(self) -> Identity: ...

    async def index(self) -> list[dict[str, str]]: ...


@dataclass(slots=True, eq=False)
class Service:
    """The parts of a process that handles requests.

    Endpoints get the service of their application from `pipeline.service_of`.
    """

    settings: Settings
    engine: Engine
    """Classifies images."""
    decoders: Decoding
    """Decodes images."""
    repository: Versions
    """Lists, loads and unloads versions of the model."""
    uploads: UploadMemory
    """Limits the memory of uploads."""
    keys: ApiKeys
    """API keys of the clients that may classify images."""
    admin_keys: ApiKeys
    """API keys of the operators who may load and unload versions of the model."""
    rate_limiter: RateLimiter | None
    """Limits the images of each client. None: clients may send any number of images."""
    metrics: Metrics
    tracing: Tracing | None
    """Sends traces of requests. None: requests are not traced."""
    draining: bool = False
    """Whether the server is shutting down."""
    failed: bool = False
    """Whether the server is shutting down because a part of it has failed."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Context manager that runs the decoders and the engine.

        On exit, the context manager waits until all accepted requests have finished.
        """
        async with self.decoders.running(), self.engine.running():
            yield

    @property
    def loaded(self) -> LoadedModel:
        """The loaded model.

        Raises NotReady if no model is loaded, and its subclass Unloaded if an operator unloaded it.
        """
        loaded = self.engine.loaded
        if loaded is None:
            raise self.not_loaded()
        return loaded

    def not_loaded(self) -> NotReady:
        """Return the exception for a request that arrives when no model is loaded."""
        return Unloaded() if self.engine.unloaded else NotReady()

    async def check_ready(self) -> tuple[LoadedModel, EngineStats | None]:
        """Check that the service can classify images now.

        Returns:
            The loaded model, and the state of the engine.

        Raises:
            Draining: The server is shutting down.
            NotReady: No model is loaded.
            Unloaded: An operator unloaded the model.
            Stalled: The engine makes no progress on a batch, or does not respond.
            DecodersDown: No decoder process is ready.
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
        """Whether the engine works. If False, the process must be restarted."""
        try:
            stats = await self.engine.stats()
        except TimeoutError:
            return False
        return stats is None or stats.healthy

    async def engine_stats(self) -> EngineStats | None:
        """Return the state of the engine for the metrics.

        The result is None if no model is loaded, or if the engine process does not respond.
        """
        try:
            return await self.engine.stats()
        except TimeoutError:
            return None
