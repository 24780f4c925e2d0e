"""A front end's side of the socket: an engine that lives in another process.

Every `submit` ends: with the answer, with what the engine's process raised, with TimeoutError when
its time is up, or with NotReady the moment the link is lost. The link is made again by itself: the
supervisor keeps the address alive while the engine's process is replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from pydantic import ValidationError

from batching import Answer
from model_store.device import Device, GpuMemory
from model_store.engine import Image
from model_store.manifest import Identity, Manifest
from model_store.precision import Precision
from service.decoding.image import EncodedImage, Pixels, as_pixels
from service.decoding.limits import Limits
from service.errors import DecodeQueueFull, EngineBusy, NotReady
from service.inference.service import Classification, LoadedModel
from service.rate_limit import Client
from service.telemetry.engine_stats import EngineStats
from service.telemetry.logs import log
from service.workers import error_codec, frames
from service.workers.connection import Link
from service.workers.frames import (
    ANSWER,
    ASK,
    DECODED,
    MODEL,
    REFUSAL,
    STATE,
    TOLD,
    BadFrame,
    Frame,
)

SOCKET = "engine.sock"
"""In the folder that the processes share."""
RECONNECT_PAUSE = 0.1
"""Seconds between two attempts to reach the engine's process."""
MAX_DECODE_BYTES = 64 * 2**20
"""Of images that a front end has handed over to be decoded."""
ANSWER_SECONDS = 2.0
"""In which the engine's process says how it is, unless it hangs."""


class _Linked:
    """Keeps a link to the engine's process."""

    def __init__(self, folder: str) -> None:
        """`folder`: the one that the processes share."""
        self._path = f"{folder}/{SOCKET}"
        self._link: _Engine | None = None
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            if self._link is not None:
                self._link.close()

    @property
    def _linked(self) -> _Engine:
        if self._link is None or self._link.ended.is_set():
            raise NotReady
        return self._link

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, link = await loop.create_unix_connection(_Engine, self._path)
            except OSError as error:
                log.debug("no link to the engine's process: %s", error)
            except Exception:  # noqa: BLE001  # or this process would never have a link again
                log.exception("no link to the engine's process")
            else:
                self._link = link
                await link.ended.wait()
                self._link = None
            await asyncio.sleep(RECONNECT_PAUSE)


class DecoderClient(_Linked):
    """The decoders of the engine's process, which all front ends share."""

    def __init__(self, folder: str, limits: Limits) -> None:
        """`folder`: the one that the processes share; `limits`: what decoding may take."""
        super().__init__(folder)
        self.max_memory = limits.max_image_memory
        self.descriptors = 0  # of this process
        self.is_down = False
        """The engine's process says so itself, when it is asked how it is."""
        self._bytes = 0

    @property
    def waiting(self) -> int:
        return len(self._link.waiting) if self._link is not None else 0

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """As `Decoders.run`. Raises NotReady, too, and DecodeQueueFull where the images that this
        process has handed over hold `MAX_DECODE_BYTES`: they are in memory twice."""
        link, number, now = self._linked, next(self._numbers), time.monotonic()
        size = len(image.data)
        if self._bytes and self._bytes + size > MAX_DECODE_BYTES:
            raise DecodeQueueFull
        self._bytes += size
        try:
            frame = frames.decode(number, now + max_seconds, client, image)
            decoded: bytes = await link.ask(number, frame, max_seconds)
        finally:
            self._bytes -= size
        return as_pixels(decoded)


class EngineClient(_Linked):
    """An `Inference` and its `Versions`, in another process of those that share a folder."""

    failure: Exception | None = None
    """None: a model that cannot be served ends the engine's process, and the supervisor us."""

    @property
    def loaded(self) -> LoadedModel | None:
        state = self._link.state if self._link is not None else None
        return state and LoadedModel(*state, self.submit)

    @property
    def unloaded(self) -> bool:
        return self._link is not None and self._link.unloaded

    async def submit(
        self,
        image: Image,
        timeout: float,  # noqa: ASYNC109 - as `Batcher.submit`
    ) -> Answer[Classification]:
        """`queue_seconds` has the way there and back in it."""
        link, number, now = self._linked, next(self._numbers), time.monotonic()
        if link.crowded:
            raise EngineBusy("the engine process does not keep up with reading")
        frame = frames.submit(number, now + timeout, image.tobytes())
        told: frames.Answer = await link.ask(number, frame, timeout)
        infer_seconds, size, bucket, model, row = told
        found = Classification(link.models[model], np.frombuffer(row, np.float32))
        queue_seconds = time.monotonic() - now - infer_seconds
        return Answer(found, queue_seconds, infer_seconds, size, bucket)

    async def stats(self) -> EngineStats | None:
        if self.loaded is None:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await self._ask({"do": "figures"})
        except NotReady:  # since a moment ago
            return None
        if told is None:
            return None
        memory = told.pop("gpu_memory")
        return EngineStats(**told, gpu_memory=memory and GpuMemory(**memory))

    async def load(self, name: str, version: str | None = None) -> Identity:
        return Identity(**await self._ask({"do": "load", "name": name, "version": version}))

    async def unload(self, name: str) -> Identity:
        return Identity(**await self._ask({"do": "unload", "name": name}))

    async def reload(self) -> Identity:
        return Identity(**await self._ask({"do": "reload"}))

    async def index(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = await self._ask({"do": "index"})
        return found

    async def _ask(self, question: dict[str, Any]) -> Any:
        """What the engine's process says to it. Raises what it raised, and NotReady."""
        link, number = self._linked, next(self._numbers)
        asked: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        link.send(frames.message(ASK, number, question))
        link.asked[number] = asked
        try:
            told = await asked
        finally:
            link.asked.pop(number, None)
            del asked  # as in `submit`
        if (refusal := told.get("refusal")) is not None:
            raise error_codec.meant(frames.Refusal(*refusal))
        return told.get("answer")


class _Engine(Link):
    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Manifest, Device, Precision] | None = None
        """What serves; None if nothing does."""
        self.unloaded = False
        self.models: dict[int, Manifest] = {}
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        """Of images: completed with a frames.Answer, or pixels."""
        self.asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.ended = asyncio.Event()

    async def ask(
        self,
        number: int,
        frame: bytes,
        timeout: float,  # noqa: ASYNC109 - as `Batcher.submit`
    ) -> Any:
        """What the engine's process answers to `frame`, which has this number. Raises what it
        raised, TimeoutError, and NotReady when the link is lost."""
        waiting: asyncio.Future[Any] = self._loop.create_future()
        timer = self._loop.call_later(timeout, _late, waiting)
        try:
            self.send(frame)
            self.waiting[number] = waiting
            return await waiting
        finally:
            timer.cancel()
            if self.waiting.pop(number, None) is not None:  # not answered
                self.send(frames.cancel(number))
            del waiting  # or a failure, whose traceback has this frame, would keep itself

    def received(self, frame: Frame) -> None:
        kind, number, body = frame
        if kind == ANSWER:
            told = frames.read_answer(body)
            if told.model not in self.models:
                raise BadFrame(f"an answer of model {told.model}, which nobody has introduced")
            if (waiting := self.waiting.pop(number, None)) and not waiting.done():
                waiting.set_result(told)
        elif kind == DECODED:
            if (waiting := self.waiting.pop(number, None)) and not waiting.done():
                waiting.set_result(body)
        elif kind == REFUSAL:
            error = error_codec.meant(frames.read_refusal(body))
            if (waiting := self.waiting.pop(number, None)) and not waiting.done():
                waiting.set_exception(error)
        elif kind == TOLD:
            content = frames.read_message(body)
            if (asked := self.asked.get(number)) and not asked.done():
                asked.set_result(content)
        elif kind == STATE:
            state = frames.read_message(body)
            self.state = _state(state.get("started"))
            self.unloaded = bool(state.get("unloaded"))
        elif kind == MODEL:
            self.models[number] = _manifest(frames.read_message(body))
        else:
            raise BadFrame(f"a frame of kind {kind} from the engine's process")

    def lost(self) -> None:
        self.state = None
        self.ended.set()
        futures: list[asyncio.Future[Any]] = [*self.waiting.values(), *self.asked.values()]
        self.waiting.clear()
        for future in futures:
            if not future.done():
                future.set_exception(NotReady())


def _state(told: Any) -> tuple[Manifest, Device, Precision] | None:
    """Raises BadFrame."""
    match told:
        case None:
            return None
        case {
            "model": dict(model),
            "device": str(device),
            "device_reason": str(device_reason),
            "precision": "fp32" | "int8" | "fp16" as precision,
            "precision_reason": str(precision_reason),
        }:
            return (
                _manifest(model),
                Device(None, device, device_reason),
                Precision(precision, precision_reason),
            )
    raise BadFrame(f"a state that is none: {told}")


def _manifest(told: dict[str, Any]) -> Manifest:
    """Raises BadFrame."""
    try:
        return Manifest.model_validate(told)
    except ValidationError as error:
        raise BadFrame(f"a model that is none: {error}") from None


def _late(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError("the deadline has passed"))
