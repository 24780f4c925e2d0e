"""Both ends of the socket between a front end and the engine process, in one process."""

from __future__ import annotations

import asyncio
import pathlib
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from model_store.engine import Image
from service.decoding.image import EncodedImage, Pixels
from service.decoding.limits import Limits
from service.inference.model_host import ModelHost
from service.inference.repository import Repository
from service.rate_limit import Client
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.workers.engine_client import SOCKET, DecoderClient, EngineClient
from service.workers.engine_server import EngineServer
from tests.fakes import FakeEngine
from tests.waiting import until

LIMITS = Limits(ordinary=1, expensive=1, expensive_memory=2**29, max_seconds=1.0)


def image(red: int) -> Image:
    return np.full((32, 32, 3), red, np.uint8)


def encoded(width: int, size: int = 100) -> EncodedImage:
    return EncodedImage(bytes(size), "WebP lossless", width, 1, 64_000_000)


class FakeDecoders:
    """Decodes an image to its width, when it may; raises what it is told to."""

    max_memory = LIMITS.expensive_memory
    waiting = 0
    is_down = False
    descriptors = 0

    def __init__(self) -> None:
        self.asked: list[tuple[EncodedImage, Client]] = []
        self.error: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.canceled = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        self.asked.append((image, client))
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        if self.error is not None:
            raise self.error
        return np.full((32, 32, 3), image.width, np.uint8)


class Pair:
    """An engine's process and its front ends, as far as sockets can tell."""

    def __init__(self, folder: pathlib.Path, engine: FakeEngine, settings: Settings) -> None:
        self.folder = folder
        self.loads: list[str] = []
        self.local = ModelHost(
            settings,
            engine.load,
            Metrics(),
            on_failure=lambda: None,
            on_change=lambda: self.hub.announce(),
        )
        self.decoders = FakeDecoders()
        repository = Repository(settings, self.local, self.loads.append)
        self.hub = EngineServer(self.local, repository, self.decoders)
        self.address = socket.socket(socket.AF_UNIX)
        self.address.bind(str(folder / SOCKET))
        self.address.listen()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[None]:
        async with self.hub.serving(self.address.dup()), self.local.running():
            yield

    @asynccontextmanager
    async def front_end(self) -> AsyncIterator[EngineClient]:
        remote = EngineClient(str(self.folder))
        async with remote.running():
            await until(lambda: remote.loaded)
            yield remote

    @asynccontextmanager
    async def front_end_decoders(self) -> AsyncIterator[DecoderClient]:
        remote = DecoderClient(str(self.folder), LIMITS)
        async with remote.running():
            await until(lambda: remote._connection)
            yield remote

    async def until_queued(self, count: int) -> None:
        await until(lambda: self.local.batcher.queued == count)


async def outcomes(tasks: Iterable[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)
