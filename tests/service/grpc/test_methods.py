"""What surrounds a method, and who may send a message. The rest is in tests/e2e, with a client."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from model_store import manifest
from service.app import create_app
from service.errors import RateLimited
from service.grpc import messages, methods
from service.grpc.call import Call, surrounded
from service.grpc.methods import Methods
from service.grpc.streams import Stream, Streams
from service.inference.service import Service
from service.rate_limit import RateLimiter, network
from service.settings import Settings
from service.upload.body import UploadMemory
from tests.fakes import MODEL, FakeEngine
from tests.service.conftest import png


class Aborted(Exception):
    """What gRPC raises in a handler that is ended."""


class Context:
    """A client with one message, which it sends when `sends` is set."""

    def __init__(self, message: bytes = b"", deadline: float | None = None, **headers: str) -> None:
        self.sends = asyncio.Event()
        self.sends.set()
        self.waiting = asyncio.Event()
        self.asked = 0
        self.answer: tuple[Any, ...] = ()
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
        self.asked += 1
        self.waiting.set()
        await self.sends.wait()
        return self._message

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        self.answer = code, details
        self.trailing = dict(trailing)
        raise Aborted


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def parts(engine: FakeEngine) -> AsyncIterator[Service]:
    """An application's, ready."""
    app = create_app(Settings(max_queue_size=2), engine.load)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        yield app.state.service


async def test_a_message_in_pieces_counts_until_it_is_computed(parts: Service) -> None:
    """What has arrived is counted once: by its stream, then by its request, then not at all."""
    streams, message = streams_of(parts), horse()
    stream = streams.open("::1", ignore, ignore)
    context = Context(message, shoal_stream=stream.name)
    context.sends.clear()
    answer = asyncio.create_task(handler("ModelInfer", parts, streams)(None, context))
    await context.waiting.wait()
    streams.receive(stream, len(message))
    assert parts.uploads.held == len(message)
    context.sends.set()
    await answer
    assert parts.uploads.held == 0 and stream.taken and stream.answered


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_a_stream_that_makes_room_gets_a_status(parts: Service, name: str) -> None:
    """UNAVAILABLE, and the time to come again, whether it fails before or while it is read."""
    for before in True, False:
        streams = Streams(parts.uploads, 1)
        stream = streams.open("::1", ignore, ignore)
        context = Context(shoal_stream=stream.name)
        context.sends.clear()
        if before:
            streams.open("::1", ignore, ignore)
        answer = asyncio.create_task(handler(name, parts, streams)(None, context))
        if not before:
            await context.waiting.wait()
            streams.open("::1", ignore, ignore)
        with pytest.raises(Aborted):
            await answer
        assert context.answer[0] is grpc.StatusCode.UNAVAILABLE
        assert context.trailing["problem-code"] == "queue_full"
        assert context.trailing["retry-after"] == "1" and stream.answered


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_a_client_that_does_not_send(
    parts: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets DEADLINE_EXCEEDED when its time is up, and holds nothing any more."""
    parts.uploads = UploadMemory(1 << 20, 1 << 20, max_seconds=0.01)
    streams = streams_of(parts)
    stream = streams.open("::1", ignore, ignore)
    context = Context(shoal_stream=stream.name)
    context.sends.clear()
    monkeypatch.setattr(methods, "NAME_SECONDS", 0.01)
    with pytest.raises(Aborted):
        await handler(name, parts, streams)(None, context)
    assert context.answer[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert context.trailing["problem-code"] == "upload_timeout"


async def test_a_client_that_has_left_already(parts: Service) -> None:
    """A stream that was closed before its handler began costs no more than its status."""
    context = Context(horse(), shoal_stream="4711")
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.CANCELLED and not context.asked


async def test_a_second_call_with_the_name_of_a_stream(parts: Service) -> None:
    """It is rejected: a name belongs to one call. The first call is not affected."""
    streams, message = streams_of(parts), horse()
    stream = streams.open("::1", ignore, ignore)
    first, second = (Context(message, shoal_stream=stream.name) for _ in range(2))
    first.sends.clear()
    answer = asyncio.create_task(handler("ModelInfer", parts, streams)(None, first))
    await first.waiting.wait()
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts, streams)(None, second)
    assert second.answer[0] is grpc.StatusCode.CANCELLED and not second.asked
    assert not stream.taken and not stream.answered
    first.sends.set()
    await answer


async def test_a_client_is_limited_over_both(parts: Service) -> None:
    """Its requests count wherever they come, and its message is not asked for."""
    rates = RateLimiter(0.01, 1)
    rates.take(network("::1"), time.monotonic())
    parts.rate_limiter = rates
    context = Context(b"")
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.RESOURCE_EXHAUSTED and not context.asked
    assert context.trailing["problem-code"] == "rate_limited"
    assert context.trailing["retry-after"] == "60"
    assert context.trailing["grpc-retry-pushback-ms"] == "60000"


@pytest.mark.parametrize("image", [png(7), b"hello"], ids=["good", "broken"])
async def test_all_images_count(parts: Service, image: bytes) -> None:
    """A message of n images counts as n, whether they can be decoded or not."""
    rates = RateLimiter(0.001, 5)
    parts.rate_limiter = rates
    message = messages.ModelInferRequest(model_name="fake")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([image] * 2)
    with contextlib.suppress(Aborted):
        await handler("ModelInfer", parts)(None, Context(message.SerializeToString()))
    for _ in range(3):
        rates.take(network("::1"), time.monotonic())
    with pytest.raises(RateLimited):
        rates.take(network("::1"), time.monotonic())


async def test_uploads_over_http_count(parts: Service) -> None:
    """The memory is one for both."""
    with parts.uploads.lease(parts.uploads.max_bytes) as share:
        share.add(parts.settings.max_upload_memory)
        streams = streams_of(parts)
        stream = streams.open("::1", ignore, ignore)
        streams.receive(stream, 1)
        context = Context(b"", x_request_id="42", shoal_stream=stream.name)
        with pytest.raises(Aborted):
            await handler("ModelInfer", parts, streams)(None, context)
    assert context.answer[0] is grpc.StatusCode.UNAVAILABLE and not context.asked
    assert context.trailing == {
        "x-request-id": "42",
        "problem-code": "upload_memory_full",
        "retry-after": "1",
        "grpc-retry-pushback-ms": "1000",
    }


def ignore(*_: object) -> None:
    pass


def streams_of(parts: Service) -> Streams:
    return Streams(parts.uploads, 8)


def handler(name: str, parts: Service, streams: Streams | None = None) -> Any:
    """That of the RPC `name`. Without `streams`, each of its calls has a new one."""
    used = streams or AnyStream(parts.uploads, 8)
    all_methods = Methods(parts, "0.2.0", used)
    found = {"ModelInfer": all_methods.infer, "ModelReady": all_methods.model_ready}[name]
    return surrounded(name, found, parts, used)


class AnyStream(Streams):
    """Knows the stream of a call that names none."""

    def claim(self, name: str) -> Stream | None:
        return super().claim(name or self.open("::1", ignore, ignore).name)


def horse(version: str = "") -> bytes:
    request = messages.ModelInferRequest(model_name="fake", model_version=version)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(png(7))
    message: bytes = request.SerializeToString()
    return message


async def test_who_names_a_version_gets_no_other(
    parts: Service, engine: FakeEngine, tmp_path: pathlib.Path
) -> None:
    """Where another takes over while a request waits, it is refused. Else its answer says which."""
    engine.seconds = 0.05
    folder = tmp_path / "fake" / "8"
    folder.mkdir(parents=True)
    manifest.write(folder, MODEL.model_copy(update={"version": "8"}))
    infer = handler("ModelInfer", parts)
    first = asyncio.create_task(infer(None, Context(horse("7"))))
    await engine.called.wait()
    named, any_version = Context(horse("7")), Context(horse())
    waiting = [asyncio.create_task(infer(None, context)) for context in (named, any_version)]
    await asyncio.sleep(0.01)
    await parts.engine.replace(folder)  # type: ignore[attr-defined]  # a ModelHost
    assert (await first).model_version == "7"
    with pytest.raises(Aborted):
        await waiting[0]
    assert named.answer[0] is grpc.StatusCode.NOT_FOUND
    assert (await waiting[1]).model_version == "8"


async def test_an_answer(parts: Service, caplog: pytest.LogCaptureFixture) -> None:
    """With the id that was sent; told in the log, as of who asked."""
    caplog.set_level("INFO")
    context = Context(horse(), x_request_id="42")
    answer = await handler("ModelInfer", parts)(None, context)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"horse"]
    assert context.trailing["x-request-id"] == "42"
    fields = next(r.fields for r in caplog.records if r.message == "request")  # type: ignore[attr-defined]
    assert (fields["client"], fields["status"]) == ("::1", "OK")
    assert parts.uploads.held == 0


async def test_the_client_s_deadline(parts: Service) -> None:
    """One that cannot be met is refused at once, though the server itself would allow more."""
    context = Context(horse(), deadline=1e-9)
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts)(None, context)
    assert context.trailing["problem-code"] in ("deadline_unreachable", "deadline_exceeded")


async def test_the_unexpected(parts: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Is told in the log, and not to the client."""

    async def fail(call: Call) -> Any:
        raise RuntimeError("secret innards")

    context = Context()
    streams = AnyStream(parts.uploads, 8)
    with pytest.raises(Aborted):
        await surrounded("ModelInfer", fail, parts, streams)(None, context)  # type: ignore[arg-type]
    assert context.answer[0] is grpc.StatusCode.INTERNAL and "innards" not in context.answer[1]
    assert "secret innards" in caplog.text


async def test_a_name_that_is_a_book(parts: Service) -> None:
    """What names a model is looked at so far and no further."""
    request = messages.ModelReadyRequest(name="x" * 1_000_000).SerializeToString()
    context = Context(request)
    with pytest.raises(Aborted):
        await handler("ModelReady", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.INVALID_ARGUMENT
