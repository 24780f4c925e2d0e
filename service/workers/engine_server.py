"""The engine's side of the socket: what front ends submit meets in one batcher.

An item that its front end cancels leaves the queue, and so does every item of a front end that is
gone. Front ends watch their own deadlines; the batcher drops what it cannot answer in time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

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
from service.workers.connection import Link
from service.workers.frames import (
    ASK,
    CANCEL,
    DECODE,
    MODEL,
    STATE,
    SUBMIT,
    TOLD,
    BadFrame,
    Frame,
)

MAX_IMAGES_BYTES = 2**40
Outcome: TypeAlias = "asyncio.Future[Answer[Classification]]"


class EngineServer:
    """All front ends, and the engine and the decoders that they share."""

    def __init__(self, local: ModelHost, versions: Versions, decoders: Decoding) -> None:
        self.local = local
        self.decoders = decoders
        self.images = UploadMemory(MAX_IMAGES_BYTES)
        """Encoded images of the front ends, which bound them."""
        self._versions = versions
        self._reloading: asyncio.Task[Identity] | None = None
        self.links: set[_FrontEnd] = set()
        self.models: list[Manifest] = []
        """All that have answered; the first one's number is 1."""

    @asynccontextmanager
    async def serving(self, listening: socket.socket) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: _FrontEnd(self), sock=listening)
        try:
            yield
        finally:
            server.close()
            for link in tuple(self.links):
                link.close()

    def announce(self) -> None:
        """Another version serves, or none."""
        for link in self.links:
            link.announce()

    def number(self, model: Manifest) -> int:
        if not self.models or self.models[-1] is not model:
            for number, known in enumerate(self.models, 1):
                if known is model:
                    return number
            self.models.append(model)
        return len(self.models)

    async def answer(self, question: dict[str, Any]) -> object:
        """What there is to say to a front end that asks for more than an image's class. Raises
        what the repository raises."""
        match question:
            case {"do": "figures"}:
                figures = await self.local.stats()
                if figures is None:
                    return None
                stalled = figures.stalled or self.decoders.is_down
                return dataclasses.asdict(figures) | {"stalled": stalled}
            case {"do": "load", "name": str(name), "version": str() | None as version}:
                return (await self._versions.load(name, version)).model_dump()
            case {"do": "unload", "name": str(name)}:
                return (await self._versions.unload(name)).model_dump()
            case {"do": "reload"}:
                return (await self._reload()).model_dump()
            case {"do": "index"}:
                return await self._versions.index()
        raise ValueError(f"a question that is none: {question}")

    async def _reload(self) -> Identity:
        """Once for all who ask at the same moment, as on SIGHUP."""
        if self._reloading is None:
            self._reloading = asyncio.create_task(self._versions.reload())
            self._reloading.add_done_callback(self._reloaded)
        return await asyncio.shield(self._reloading)

    def _reloaded(self, _: asyncio.Task[Identity]) -> None:
        self._reloading = None


class _FrontEnd(Link):
    def __init__(self, hub: EngineServer) -> None:
        super().__init__()
        self._hub = hub
        self._models = 0
        self._waiting: dict[int, Callable[[], object]] = {}
        self._asked: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._hub.links.add(self)
        self.announce()

    def announce(self) -> None:
        """Before any answer of the version that it is about."""
        local = self._hub.local
        with on_error(self._fail):
            told = local.loaded and {
                "model": local.loaded.model.model_dump(mode="json"),
                "device": local.loaded.device.name,
                "device_reason": local.loaded.device.reason,
                "precision": local.loaded.precision.name,
                "precision_reason": local.loaded.precision.reason,
            }
            self.send(frames.message(STATE, 0, {"started": told, "unloaded": local.unloaded}))

    def received(self, frame: Frame) -> None:
        kind, number, body = frame
        if kind == SUBMIT:
            self._submit(number, body)
        elif kind == DECODE:
            self._check_unused(number)
            self._waiting[number] = self._loop.create_task(
                self._decode(number, *frames.read_decode(body))
            ).cancel
        elif kind == CANCEL:
            if leave := self._waiting.pop(number, None):
                leave()
        elif kind == ASK:
            task = self._loop.create_task(self._answer(number, frames.read_message(body)))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
        else:
            raise BadFrame(f"a frame of kind {kind} from a front end")

    def lost(self) -> None:
        self._hub.links.discard(self)
        log.debug("a front end left", extra={"fields": {"waiting": len(self._waiting)}})
        waiting, self._waiting = self._waiting, {}
        for leave in waiting.values():
            leave()
        for task in self._asked:
            task.cancel()

    def _submit(self, number: int, body: bytes) -> None:
        self._check_unused(number)
        deadline, data = frames.read_submit(body)
        with on_error(self._refuse, number):
            image = np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)
            batcher = self._hub.local.batcher
            entry = batcher.enqueue(image, deadline - time.monotonic())
            self._waiting[number] = partial(batcher.cancel, entry)
            entry.answer.add_done_callback(partial(self._done, number))

    def _check_unused(self, number: int) -> None:
        if number in self._waiting:
            raise BadFrame(f"number {number} twice")

    def _done(self, number: int, outcome: Outcome) -> None:
        if self._waiting.pop(number, None) is not None:  # or it has left
            with on_error(self._refuse, number):
                self._send_answer(number, outcome.result())

    def _refuse(self, number: int, error: Exception) -> None:
        """The front end raises `error`, in this request."""
        with on_error(self._fail):
            self.send(frames.refusal(number, _refusal(error)))

    def _send_answer(self, number: int, found: Answer[Classification]) -> None:
        model = self._hub.number(found.value.model)
        while self._models < model:
            self._models += 1
            told = self._hub.models[self._models - 1].model_dump(mode="json")
            self.send(frames.message(MODEL, self._models, told))
        row = np.ascontiguousarray(found.value.probabilities, np.float32).tobytes()
        self.send(
            frames.answer(
                number,
                frames.Answer(found.infer_seconds, found.batch_size, found.bucket, model, row),
            )
        )

    async def _decode(
        self, number: int, deadline: float, client: bytes, image: EncodedImage
    ) -> None:
        try:
            with self._hub.images.lease() as share:
                share.add(len(image.data))
                pixels = await self._hub.decoders.run(image, client, deadline - time.monotonic())
            self.send(frames.decoded(number, pixels.tobytes()))
        except Exception as error:  # noqa: BLE001  # the front end raises it again
            self._refuse(number, error)
        self._waiting.pop(number, None)

    async def _answer(self, number: int, question: dict[str, Any]) -> None:
        with on_error(self._refuse_question, number):
            told = {"answer": await self._hub.answer(question)}
            self.send(frames.message(TOLD, number, told))

    def _refuse_question(self, number: int, error: Exception) -> None:
        with on_error(self._fail):
            self.send(frames.message(TOLD, number, {"refusal": list(_refusal(error))}))


def _refusal(error: Exception) -> frames.Refusal:
    """`error` as plain data. One that is not foreseen is logged here, where its traceback is."""
    refusal = error_codec.told(error)
    if isinstance(error_codec.meant(refusal), error_codec.Unexpected):
        log.error("unexpected error", exc_info=error)
    return refusal
