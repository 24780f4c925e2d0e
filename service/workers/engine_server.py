"""The server of the engine process: batches images of all front ends together.

Front ends, which are processes that serve HTTP, connect to this server over a Unix socket. An image
is removed from the queue when its front end cancels the request or disconnects. A front end cancels
a request at its deadline. The batcher also rejects images that cannot meet their deadlines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np

from batching import Answer, on_error
from model_store.engine import SIDE
from model_store.manifest import Identity, Manifest
from service.decoding.image import EncodedImage
from service.inference.model_host import ModelHost
from service.inference.service import Classification, Decoding, Versions
from service.telemetry.logs import log
from service.upload.body import UploadMemory
from service.workers import error_codec, frames
from service.workers.connection import FrameConnection
from service.workers.frames import (
    CALL,
    CANCEL,
    DECODE,
    MODEL,
    RESULT,
    STATE,
    SUBMIT,
    BadFrame,
    Frame,
)

MAX_IMAGE_BYTES = 2**40
"""Maximum number of bytes of encoded images. The maximum is never reached, because each front end
limits the images that it sends."""


class EngineServer:
    """Serves the engine, the model repository and the decoders to all front ends."""

    def __init__(self, local: ModelHost, versions: Versions, decoders: Decoding) -> None:
        """
        Args:
            local: Engine and batcher of this process.
            versions: Model repository.
            decoders: Decoder processes.
        """
        self.local = local
        self.decoders = decoders
        self.images = UploadMemory(MAX_IMAGE_BYTES)
        """Memory of the encoded images that are being decoded."""
        self._versions = versions
        self._reloading: asyncio.Task[Identity] | None = None
        self.connections: set[_FrontEndConnection] = set()
        self.models: list[Manifest] = []
        """All models that have classified images. Frames refer to a model by its number, which is
        the index in this list plus 1."""

    @asynccontextmanager
    async def serving(self, listening: socket.socket) -> AsyncIterator[None]:
        """Accept connections of front ends on `listening`, within the context."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: _FrontEndConnection(self), sock=listening)
        try:
            yield
        finally:
            server.close()
            for connection in tuple(self.connections):
                connection.close()

    def announce(self) -> None:
        """Tell all front ends which model is loaded."""
        for connection in self.connections:
            connection.announce()

    def model_number(self, model: Manifest) -> int:
        """Return the number that identifies a model in frames. A new model gets the next number."""
        if not self.models or self.models[-1] is not model:
            for number, known in enumerate(self.models, 1):
                if known is model:
                    return number
            self.models.append(model)
        return len(self.models)

    async def call(self, call: dict[str, Any]) -> object:
        """Handle a call of a front end, such as a call to load a version of the model.

        Args:
            call: Name of the operation (`do`), and the arguments of the operation.

        Returns:
            The result, as JSON values.

        Raises:
            ValueError: The call is unknown.
            Exception: The repository raised this exception.
        """
        match call:
            case {"do": "figures"}:
                stats = await self.local.stats()
                if stats is None:
                    return None
                stalled = stats.stalled or self.decoders.is_down
                return dataclasses.asdict(stats) | {"stalled": stalled}
            case {"do": "load", "name": str(name), "version": str() | None as version}:
                return (await self._versions.load(name, version)).model_dump()
            case {"do": "unload", "name": str(name)}:
                return (await self._versions.unload(name)).model_dump()
            case {"do": "reload"}:
                return (await self._reload()).model_dump()
            case {"do": "index"}:
                return await self._versions.index()
        raise ValueError(f"unknown call: {call}")

    async def _reload(self) -> Identity:
        """Reload the model. All front ends request a reload after SIGHUP, and share one reload."""
        if self._reloading is None:
            self._reloading = asyncio.create_task(self._versions.reload())
            self._reloading.add_done_callback(self._finish_reload)
        return await asyncio.shield(self._reloading)

    def _finish_reload(self, _: asyncio.Task[Identity]) -> None:
        self._reloading = None


class _FrontEndConnection(FrameConnection):
    """A connection from a front end, and its requests in progress."""

    def __init__(self, server: EngineServer) -> None:
        super().__init__()
        self._server = server
        self._models = 0  # number of sent manifests
        # request number -> function that cancels the request
        self._cancel: dict[int, Callable[[], object]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._server.connections.add(self)
        self.announce()

    def announce(self) -> None:
        """Send the state of the loaded model. Callers must call this method before any result of
        the model is sent."""
        local = self._server.local
        with on_error(self._fail):
            started = local.loaded and {
                "model": local.loaded.model.model_dump(mode="json"),
                "device": local.loaded.device.name,
                "device_reason": local.loaded.device.reason,
                "backend": local.loaded.backend.name,
                "backend_reason": local.loaded.backend.reason,
                "precision": local.loaded.precision.name,
                "precision_reason": local.loaded.precision.reason,
            }
            self.send(frames.message(STATE, 0, {"started": started, "unloaded": local.unloaded}))

    def frame_received(self, frame: Frame) -> None:
        kind, number, body = frame
        if kind == SUBMIT:
            self._submit(number, body)
        elif kind == DECODE:
            self._check_unused(number)
            self._cancel[number] = self._loop.create_task(
                self._decode(number, *frames.read_decode(body))
            ).cancel
        elif kind == CANCEL:
            if cancel := self._cancel.pop(number, None):
                cancel()
        elif kind == CALL:
            task = self._loop.create_task(self._call(number, frames.read_message(body)))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        else:
            raise BadFrame(f"unexpected frame of kind {kind} from a front end")

    def disconnected(self) -> None:
        self._server.connections.discard(self)
        log.debug("a front end disconnected", extra={"fields": {"waiting": len(self._cancel)}})
        requests, self._cancel = self._cancel, {}
        for cancel in requests.values():
            cancel()
        for task in self._calls:
            task.cancel()

    def _submit(self, number: int, body: bytes) -> None:
        self._check_unused(number)
        deadline, data = frames.read_submit(body)
        with on_error(self._send_error, number):
            image = np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)
            batcher = self._server.local.batcher
            entry = batcher.enqueue(image, deadline - time.monotonic())
            self._cancel[number] = partial(batcher.cancel, entry)
            entry.answer.add_done_callback(partial(self._complete, number))

    def _check_unused(self, number: int) -> None:
        if number in self._cancel:
            raise BadFrame(f"request number {number} is already in use")

    def _complete(self, number: int, answer: asyncio.Future[Answer[Classification]]) -> None:
        if self._cancel.pop(number, None) is not None:  # not canceled
            with on_error(self._send_error, number):
                self._send_answer(number, answer.result())

    def _send_error(self, number: int, error: Exception) -> None:
        """Send an error, which the front end raises in the request with this number."""
        with on_error(self._fail):
            self.send(frames.error(number, _encode(error)))

    def _send_answer(self, number: int, answer: Answer[Classification]) -> None:
        model = self._server.model_number(answer.value.model)
        while self._models < model:
            self._models += 1
            manifest = self._server.models[self._models - 1].model_dump(mode="json")
            self.send(frames.message(MODEL, self._models, manifest))
        row = np.ascontiguousarray(answer.value.probabilities, np.float32).tobytes()
        self.send(
            frames.answer(
                number,
                frames.Answer(answer.infer_seconds, answer.batch_size, answer.bucket, model, row),
            )
        )

    async def _decode(
        self, number: int, deadline: float, client: bytes, image: EncodedImage
    ) -> None:
        try:
            with self._server.images.lease() as lease:
                lease.add(len(image.data))
                remaining = deadline - time.monotonic()
                pixels = await self._server.decoders.run(image, client, remaining)
            self.send(frames.decoded(number, pixels.tobytes()))
        except Exception as error:  # noqa: BLE001  # the front end raises the error
            self._send_error(number, error)
        self._cancel.pop(number, None)

    async def _call(self, number: int, call: dict[str, Any]) -> None:
        with on_error(self._send_call_error, number):
            result = await self._server.call(call)
            self.send(frames.message(RESULT, number, {"result": result}))

    def _send_call_error(self, number: int, error: Exception) -> None:
        with on_error(self._fail):
            self.send(frames.message(RESULT, number, {"error": list(_encode(error))}))


def _encode(error: Exception) -> frames.Error:
    """Encode an exception. Logs unexpected exceptions, because frames have no traceback."""
    encoded = error_codec.encode(error)
    if isinstance(error_codec.decode(encoded), error_codec.Unexpected):
        log.error("unexpected error", exc_info=error)
    return encoded
