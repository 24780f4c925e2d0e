"""Calls of RPC methods without a network: a fake context of gRPC, and the handlers to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from service.app import create_app
from service.grpc import messages
from service.grpc.interceptor import intercepted
from service.grpc.methods import Methods
from service.grpc.streams import Stream, Streams
from service.inference.service import Service
from service.settings import Settings
from tests.fakes import FakeEngine
from tests.service.conftest import png


class Aborted(Exception):
    """What gRPC raises in a handler that aborts its call."""


class Context:
    """The context of a call with one message, which the client sends when `sends` is set."""

    def __init__(self, message: bytes = b"", deadline: float | None = None, **headers: str) -> None:
        self.sends = asyncio.Event()
        self.sends.set()
        self.waiting = asyncio.Event()
        """Set when the handler waits for the message."""
        self.reads = 0
        self.status: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}
        self._message = message
        self._deadline = deadline
        self._headers = headers

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.replace("_", "-"), value) for name, value in self._headers.items())

    def time_remaining(self) -> float | None:
        return self._deadline

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = dict(metadata)

    async def read(self) -> bytes:
        self.reads += 1
        self.waiting.set()
        await self.sends.wait()
        return self._message

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        self.status, self.details = code, details
        self.trailing = dict(trailing)
        raise Aborted


class AnyStream(Streams):
    """Opens a new stream for each call that names none."""

    def claim(self, name: str) -> Stream | None:
        return super().claim(name or self.open("::1", ignore, ignore).name)


@asynccontextmanager
async def application(engine: FakeEngine) -> AsyncIterator[Service]:
    """The service of an application that is ready, with a queue for two images."""
    app = create_app(Settings(max_queue_size=2), engine.load)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        yield app.state.service


def ignore(*_: object) -> None:
    """A callback that does nothing."""


def streams_of(service: Service) -> Streams:
    return Streams(service.uploads, 8)


def handler(name: str, service: Service, streams: Streams | None = None) -> Any:
    """The handler of the RPC `name`. Without `streams`, each of its calls has a new stream."""
    used = streams or AnyStream(service.uploads, 8)
    methods = Methods(service, "0.2.0", used)
    method = {"ModelInfer": methods.infer, "ModelReady": methods.model_ready}[name]
    return intercepted(name, method, service, used)


def horse(version: str = "") -> bytes:
    """A ModelInferRequest with an image that FakeEngine classifies as a horse."""
    request = messages.ModelInferRequest(model_name="fake", model_version=version)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(png(7))
    message: bytes = request.SerializeToString()
    return message
