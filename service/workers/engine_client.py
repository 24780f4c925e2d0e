"""Clients of the engine and of the decoders, which run in the engine process.

Front ends, which are processes that serve HTTP, use these clients over a Unix socket. A call
returns the result or raises the exception that the engine process raised. A call raises
TimeoutError at its deadline, and NotReady if the connection is lost. The clients reconnect
automatically. The supervisor, which starts the processes, keeps the address open while the engine
process is restarted.
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
from model_store.backend import BackendChoice
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
from service.workers.connection import FrameConnection
from service.workers.frames import (
    ANSWER,
    CALL,
    DECODED,
    ERROR,
    MODEL,
    RESULT,
    STATE,
    BadFrame,
    Frame,
)

SOCKET = "engine.sock"
"""Name of the engine process's socket in the folder that the processes share."""
RECONNECT_PAUSE = 0.1
"""Number of seconds between two attempts to connect to the engine process."""
MAX_DECODE_BYTES = 64 * 2**20
"""Maximum number of bytes of the images that a front end has sent and that are not decoded yet."""
STATS_TIMEOUT = 2.0
"""Number of seconds that a front end waits for the stats of the engine process."""


class _Client:
    """Keeps a connection to the engine process."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: Path of the folder that the processes share.
        """
        self._path = f"{folder}/{SOCKET}"
        self._connection: _EngineConnection | None = None
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep a connection to the engine process within the context.

        If the connection is lost, it is opened again.
        """
        task = asyncio.create_task(self._stay_connected())
        try:
            yield
        finally:
            task.cancel()
            if self._connection is not None:
                self._connection.close()

    def _connected(self) -> _EngineConnection:
        """Return the open connection. Raises NotReady if there is no open connection."""
        if self._connection is None or self._connection.ended.is_set():
            raise NotReady
        return self._connection

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                _, connection = await loop.create_unix_connection(_EngineConnection, self._path)
            except OSError as error:
                log.debug("cannot connect to the engine process: %s", error)
            except Exception:  # noqa: BLE001  # an uncaught error would end this loop
                log.exception("cannot connect to the engine process")
            else:
                self._connection = connection
                await connection.ended.wait()
                self._connection = None
            await asyncio.sleep(RECONNECT_PAUSE)


class DecoderClient(_Client):
    """The decoders of the engine process, which all front ends share."""

    def __init__(self, folder: str, limits: Limits) -> None:
        """
        Args:
            folder: Path of the folder that the processes share.
            limits: Limits of the decoder processes.
        """
        super().__init__(folder)
        self.max_memory = limits.max_image_memory
        self.descriptors = 0
        """Number of descriptors of this process that the decoders need, which is always 0."""
        self.is_down = False
        """Always False: the stats of the engine process include the state of the decoders."""
        self._bytes = 0

    @property
    def waiting(self) -> int:
        """Number of images that this front end has sent and that are not decoded yet."""
        return len(self._connection.pending) if self._connection is not None else 0

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        """Decode an image, as `Decoders.run` does.

        Also raises NotReady if there is no connection, and DecodeQueueFull if the images that are
        not decoded yet exceed `MAX_DECODE_BYTES`. The limit is needed because each process has a
        copy of these images. Bytes of a canceled request count until they are sent.
        """
        connection, number, now = self._connected(), next(self._numbers), time.monotonic()
        size = len(image.data)
        held = max(self._bytes, connection.unsent_bytes)
        if held and held + size > MAX_DECODE_BYTES:
            raise DecodeQueueFull
        self._bytes += size
        try:
            frame = frames.decode(number, now + max_seconds, client, image)
            pixels: bytes = await connection.request(number, frame, max_seconds)
        finally:
            self._bytes -= size
        return as_pixels(pixels)


class EngineClient(_Client):
    """Client of the engine and the model repository. Implements `Engine` and `Versions`."""

    failure: Exception | None = None
    """Always None. If the model cannot be served, the engine process ends, not this process."""

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model. None if no model is loaded, or if there is no connection."""
        state = self._connection.state if self._connection is not None else None
        return state and LoadedModel(*state, self.submit)

    @property
    def unloaded(self) -> bool:
        """Whether the model was unloaded by a request. False if there is no connection."""
        return self._connection is not None and self._connection.unloaded

    async def submit(
        self,
        image: Image,
        timeout: float,  # noqa: ASYNC109 - as `Batcher.submit`
    ) -> Answer[Classification]:
        """Classify an image, as `Batcher.submit` does.

        Also raises NotReady if there is no connection, and EngineBusy if the connection is
        congested. `queue_seconds` of the result includes the time of the transfer between the
        processes.
        """
        connection, number, now = self._connected(), next(self._numbers), time.monotonic()
        if connection.congested:
            raise EngineBusy("the engine process reads too slowly")
        frame = frames.submit(number, now + timeout, image.tobytes())
        answer: frames.Answer = await connection.request(number, frame, timeout)
        infer_seconds, size, bucket, model, row = answer
        value = Classification(connection.models[model], np.frombuffer(row, np.float32))
        queue_seconds = time.monotonic() - now - infer_seconds
        return Answer(value, queue_seconds, infer_seconds, size, bucket)

    async def stats(self) -> EngineStats | None:
        """Return the stats of the engine, or None if no model is loaded.

        Raises TimeoutError if the engine process does not respond in `STATS_TIMEOUT` seconds.
        """
        if self.loaded is None:
            return None
        try:
            async with asyncio.timeout(STATS_TIMEOUT):
                stats = await self._call({"do": "figures"})
        except NotReady:  # the connection was lost after the check above
            return None
        if stats is None:
            return None
        memory = stats.pop("gpu_memory")
        return EngineStats(**stats, gpu_memory=memory and GpuMemory(**memory))

    async def load(self, name: str, version: str | None = None) -> Identity:
        return Identity(**await self._call({"do": "load", "name": name, "version": version}))

    async def unload(self, name: str) -> Identity:
        return Identity(**await self._call({"do": "unload", "name": name}))

    async def reload(self) -> Identity:
        return Identity(**await self._call({"do": "reload"}))

    async def index(self) -> list[dict[str, str]]:
        versions: list[dict[str, str]] = await self._call({"do": "index"})
        return versions

    async def _call(self, call: dict[str, Any]) -> Any:
        """Call `EngineServer.call` in the engine process and return the result.

        Raises the exception that the engine process raised, or NotReady if there is no connection.
        """
        connection, number = self._connected(), next(self._numbers)
        result: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        connection.send(frames.message(CALL, number, call))
        connection.calls[number] = result
        try:
            content = await result
        finally:
            connection.calls.pop(number, None)
            del result  # as in `_EngineConnection.request`
        if (error := content.get("error")) is not None:
            raise error_codec.decode(frames.Error(*error))
        return content.get("result")


class _EngineConnection(FrameConnection):
    """A connection to the engine process, and the state that the process has reported."""

    def __init__(self) -> None:
        super().__init__()
        self.state: tuple[Manifest, Device, BackendChoice, Precision] | None = None
        """Manifest of the loaded model, its device, backend and precision. None: no model is
        loaded."""
        self.unloaded = False
        """Whether the model was unloaded by a request."""
        self.models: dict[int, Manifest] = {}
        """Manifests of models, by the number of the model in ANSWER frames."""
        self.pending: dict[int, asyncio.Future[Any]] = {}
        """Futures for the results of requests, by number of the request. A result is a
        `frames.Answer`, or the bytes of pixels."""
        self.calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        """Futures for the contents of RESULT frames, by number of the call."""
        self.ended = asyncio.Event()
        """Set when the connection has ended."""

    async def request(
        self,
        number: int,
        frame: bytes,
        timeout: float,  # noqa: ASYNC109 - as `Batcher.submit`
    ) -> Any:
        """Send a frame with a request, and return the result.

        Args:
            number: Number of the request.
            frame: The frame, which contains `number`.
            timeout: Maximum number of seconds to wait for the result.

        Raises:
            TimeoutError: The result did not arrive within `timeout`.
            NotReady: The connection was lost.
            Exception: The engine process raised this exception.
        """
        pending: asyncio.Future[Any] = self._loop.create_future()
        timer = self._loop.call_later(timeout, _time_out, pending)
        try:
            self.send(frame)
            self.pending[number] = pending
            return await pending
        finally:
            timer.cancel()
            if self.pending.pop(number, None) is not None:  # no result has arrived
                self.send(frames.cancel(number))
            del pending  # breaks a reference cycle: exception -> traceback -> future

    def frame_received(self, frame: Frame) -> None:
        kind, number, body = frame
        if kind == ANSWER:
            answer = frames.read_answer(body)
            if answer.model not in self.models:
                raise BadFrame(f"an ANSWER frame with unknown model number {answer.model}")
            if (pending := self.pending.pop(number, None)) and not pending.done():
                pending.set_result(answer)
        elif kind == DECODED:
            if (pending := self.pending.pop(number, None)) and not pending.done():
                pending.set_result(body)
        elif kind == ERROR:
            error = error_codec.decode(frames.read_error(body))
            if (pending := self.pending.pop(number, None)) and not pending.done():
                pending.set_exception(error)
        elif kind == RESULT:
            content = frames.read_message(body)
            if (call := self.calls.get(number)) and not call.done():
                call.set_result(content)
        elif kind == STATE:
            state = frames.read_message(body)
            self.state = _state(state.get("started"))
            self.unloaded = bool(state.get("unloaded"))
        elif kind == MODEL:
            self.models[number] = _manifest(frames.read_message(body))
        else:
            raise BadFrame(f"unexpected frame of kind {kind} from the engine process")

    def disconnected(self) -> None:
        self.state = None
        self.ended.set()
        futures: list[asyncio.Future[Any]] = [*self.pending.values(), *self.calls.values()]
        self.pending.clear()
        for future in futures:
            if not future.done():
                future.set_exception(NotReady())


def _state(started: Any) -> tuple[Manifest, Device, BackendChoice, Precision] | None:
    """Parse the JSON value `started` of a STATE frame. Raises BadFrame."""
    match started:
        case None:
            return None
        case {
            "model": dict(model),
            "device": str(device),
            "device_reason": str(device_reason),
            "backend": "mxnet" | "onnxruntime" as backend,
            "backend_reason": str(backend_reason),
            "precision": "fp32" | "int8" | "fp16" as precision,
            "precision_reason": str(precision_reason),
        }:
            return (
                _manifest(model),
                Device(device, device_reason),
                BackendChoice(backend, backend_reason),
                Precision(precision, precision_reason),
            )
    raise BadFrame(f"an invalid state: {started}")


def _manifest(content: dict[str, Any]) -> Manifest:
    """Parse a manifest. Raises BadFrame."""
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise BadFrame(f"an invalid manifest: {error}") from None


def _time_out(pending: asyncio.Future[Any]) -> None:
    if not pending.done():
        pending.set_exception(TimeoutError("the deadline has passed"))
