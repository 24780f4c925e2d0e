"""What a process that answers requests holds: decoders, a budget for uploads, and an engine.

The engine is in this process (`local`) or in another (`workers.remote`); nothing here can tell.
Loading happens beside the listening server, so that probes are answered meanwhile: `/healthz`
says live and `/readyz` says not ready.

Another version may take the place of the one that serves. An answer has with it the model that
computed it, which need not be the one that serves by the time it is written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
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
from service.rate_limit import Client
from service.settings import Settings
from service.telemetry.engine_stats import EngineStats
from service.upload.memory import UploadMemory


@dataclass(frozen=True, slots=True)
class Classification:
    """What a version of a model says of an image."""

    model: Manifest
    probabilities: Probabilities


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is loaded and warm, and what it runs on."""

    model: Manifest
    device: Device
    precision: Precision


class Inference(Protocol):
    """An engine and its batcher, wherever they are."""

    @property
    def started(self) -> LoadedModel | None:
        """None: nothing is loaded, or it cannot be reached."""

    @property
    def unloaded(self) -> bool:
        """Is nothing loaded because somebody wanted it so?"""

    @property
    def failure(self) -> Exception | None:
        """Why the model cannot be served, if so; then the process ends."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """It does its work within; on the way out it drains."""

    def submit(self, image: Image, timeout: float) -> Coroutine[Any, Any, Answer[Classification]]:
        """What the version that computes it says of `image`, within `timeout` seconds.

        Raises NotReady, and what `Batcher.submit` raises.
        """

    async def figures(self) -> EngineStats | None:
        """None: there are none, since nothing is loaded. Raises TimeoutError: no answer."""


class Decoding(Protocol):
    """Decoder processes, wherever they are; `service.decoding.pool.Decoders` is one."""

    @property
    def max_memory(self) -> int:
        """Bytes that decoding one image may take."""

    @property
    def is_down(self) -> bool:
        """Whether decoders cannot be started."""

    @property
    def waiting(self) -> int:
        """Images that wait for a decoder of this process."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Within, images are decoded."""

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """The pixels of `image`, within `max_seconds`; `client` is what tells clients apart.

        Raises what `Decoders.run` raises.
        """


class Versions(Protocol):
    """The model repository; `service.inference.repository.Repository` is one."""

    async def load(self, name: str, version: str | None = None) -> Identity: ...

    async def unload(self, name: str) -> Identity: ...

    async def reload(self) -> Identity: ...

    async def index(self) -> list[dict[str, str]]: ...


class Serving:
    """Of one process."""

    def __init__(self, settings: Settings, inference: Inference, decoders: Decoding) -> None:
        self.decoders = decoders
        self.uploads = UploadMemory(settings.max_upload_memory)
        self.inference = inference
        self.draining = False
        """On the way out: whoever chooses among servers should choose another."""

    @property
    def ready(self) -> LoadedModel:
        """Raises NotReady, or Unloaded, which is one."""
        if (started := self.inference.started) is None:
            raise Unloaded if self.inference.unloaded else NotReady
        return started

    async def available(self) -> tuple[LoadedModel, EngineStats | None]:
        """What a readiness probe is told.

        Raises Draining, and NotReady or one of its kinds: Unloaded, Stalled, DecodersDown.
        """
        ready = self.ready
        if self.draining:
            raise Draining
        if self.decoders.is_down:
            raise DecodersDown
        try:
            figures = await self.inference.figures()
        except TimeoutError:
            raise Stalled from None
        if figures is not None and figures.stalled:
            raise Stalled
        return ready, figures

    def submit(self, image: Image, timeout: float) -> Coroutine[Any, Any, Answer[Classification]]:
        """`Inference.submit`."""
        return self.inference.submit(image, timeout)

    async def live(self) -> bool:
        """False: only a new process helps."""
        try:
            figures = await self.inference.figures()
        except TimeoutError:
            return False
        return figures is None or figures.healthy

    async def figures(self) -> EngineStats | None:
        """None also where nobody answers: what else there is to tell is no less useful for that."""
        try:
            return await self.inference.figures()
        except TimeoutError:
            return None

    @property
    def failure(self) -> Exception | None:
        """Why the model cannot be served, if so."""
        return self.inference.failure

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.decoders.running(), self.inference.running():
            yield
