"""What surrounds a method, and who may send a message. The rest is in tests/e2e, with a client."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from starlette.datastructures import State

from batching import QueueFull
from model_store import manifest
from service.app import create_app
from service.budget import Budget
from service.errors import RateLimited, UploadTimeout
from service.rates import Rates, network
from service.rpc import messages
from service.rpc.call import Call, surrounded
from service.rpc.methods import Methods, Places
from service.settings import Settings
from tests.fakes import MODEL, FakeEngine
from tests.service.conftest import png

MEBIBYTE = 2**20


class Aborted(Exception):
    """What gRPC raises in a handler that is ended."""


class Context:
    """A client with one message, which it sends when `sends` is set."""

    def __init__(self, message: bytes = b"", deadline: float | None = None, **headers: str) -> None:
        self.sends = asyncio.Event()
        self.sends.set()
        self.asked = 0
        self.answer: tuple[Any, ...] = ()
        self.trailing: dict[str, str] = {}
        self._message = message
        self._deadline = deadline
        self._headers = headers

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.replace("_", "-"), value) for name, value in self._headers.items())

    def peer(self) -> str:
        return "ipv6:%5B::1%5D:4711"

    def time_remaining(self) -> float | None:
        return self._deadline

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = dict(metadata)

    async def read(self) -> bytes:
        self.asked += 1
        await self.sends.wait()
        return self._message

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any) -> None:
        self.answer = code, details
        self.trailing = dict(trailing)
        raise Aborted


def call(context: Context) -> Call:
    return Call(context)  # type: ignore[arg-type]  # what it uses of a context


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def parts(engine: FakeEngine) -> AsyncIterator[State]:
    """An application's, ready."""
    app = create_app(Settings(max_queue_size=2), engine.load)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        yield app.state


def places(count: int, waiting: int = 8) -> Places:
    return Places(
        Settings(
            max_upload_bytes=MEBIBYTE,
            max_upload_memory=2 * count * MEBIBYTE,
            max_queue_size=waiting,
        )
    )


async def test_no_more_messages_at_once_than_there_are_places() -> None:
    """Others wait with their clients, and are not asked for theirs meanwhile."""
    found, budget = places(2), Budget(4 * MEBIBYTE)
    contexts = [Context(b"x" * 10) for _ in range(5)]
    for context in contexts:
        context.sends.clear()
    with budget.holding() as share:
        reading = [
            asyncio.ensure_future(found.reader(call(c))(MEBIBYTE, 9, share)) for c in contexts
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [context.asked for context in contexts] == [1, 1, 0, 0, 0]
        assert budget.held == 2 * MEBIBYTE, "each may be as large as any"
        for context in contexts:
            context.sends.set()
        assert await asyncio.gather(*reading) == [b"x" * 10] * 5
        assert budget.held == 50, "now that they are there"
    assert budget.held == 0


async def test_a_client_that_does_not_send_gives_its_place_up() -> None:
    found, budget = places(1), Budget(2 * MEBIBYTE)
    silent, other = Context(), Context(b"x")
    silent.sends.clear()
    with budget.holding() as share, pytest.raises(UploadTimeout, match=r"within 0\.01 seconds"):
        await found.reader(call(silent))(MEBIBYTE, 0.01, share)
    with budget.holding() as share:
        assert await found.reader(call(other))(MEBIBYTE, 0.01, share) == b"x"


async def test_who_waits_for_a_place_is_bounded() -> None:
    found, budget = places(1, waiting=2), Budget(2 * MEBIBYTE)
    first, second, third = [Context() for _ in range(3)]
    first.sends.clear()
    with budget.holding() as share:
        waiting = [
            asyncio.ensure_future(found.reader(call(context))(MEBIBYTE, 9, share))
            for context in (first, second)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await found.reader(call(third))(MEBIBYTE, 9, share)
        first.sends.set()
        await asyncio.gather(*waiting)


async def test_a_client_is_limited_over_both(parts: State) -> None:
    """Its requests count wherever they come, and its message is not asked for."""
    rates = Rates(0.01, 1)
    rates.take(network("::1"), time.monotonic())
    parts.provisions = replace(parts.provisions, rates=rates)
    context = Context(b"")
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.RESOURCE_EXHAUSTED and not context.asked
    assert context.trailing["problem-code"] == "rate_limited"
    assert context.trailing["retry-after"] == "60"
    assert context.trailing["grpc-retry-pushback-ms"] == "60000"


@pytest.mark.parametrize("image", [png(7), b"hello"], ids=["good", "broken"])
async def test_all_images_count(parts: State, image: bytes) -> None:
    """A message of n images counts as n, whether they can be decoded or not."""
    rates = Rates(0.001, 5)
    parts.provisions = replace(parts.provisions, rates=rates)
    message = messages.ModelInferRequest(model_name="fake")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([image] * 2)
    with contextlib.suppress(Aborted):
        await handler("ModelInfer", parts)(None, Context(message.SerializeToString()))
    for _ in range(3):
        rates.take(network("::1"), time.monotonic())
    with pytest.raises(RateLimited):
        rates.take(network("::1"), time.monotonic())


async def test_uploads_over_http_count(parts: State) -> None:
    """The memory is one for both."""
    with parts.serving.uploads.holding() as share:
        share.add(parts.settings.max_upload_memory)
        context = Context(b"", x_request_id="42")
        with pytest.raises(Aborted):
            await handler("ModelInfer", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.UNAVAILABLE and not context.asked
    assert context.trailing == {
        "x-request-id": "42",
        "problem-code": "queue_full",
        "retry-after": "1",
        "grpc-retry-pushback-ms": "1000",
    }


def handler(name: str, parts: State) -> Any:
    methods = Methods(parts, "0.1.0")
    found = {"ModelInfer": methods.infer, "ModelReady": methods.model_ready}[name]
    return surrounded(name, found, parts)


def horse(version: str = "") -> bytes:
    request = messages.ModelInferRequest(model_name="fake", model_version=version)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(png(7))
    message: bytes = request.SerializeToString()
    return message


async def test_who_names_a_version_gets_no_other(
    parts: State, engine: FakeEngine, tmp_path: pathlib.Path
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
    await parts.serving.inference.replace(folder)
    assert (await first).model_version == "7"
    with pytest.raises(Aborted):
        await waiting[0]
    assert named.answer[0] is grpc.StatusCode.NOT_FOUND
    assert (await waiting[1]).model_version == "8"


async def test_an_answer(parts: State, caplog: pytest.LogCaptureFixture) -> None:
    """With the id that was sent; told in the log, as of who asked."""
    caplog.set_level("INFO")
    context = Context(horse(), x_request_id="42")
    answer = await handler("ModelInfer", parts)(None, context)
    assert list(answer.outputs[0].contents.bytes_contents) == [b"horse"]
    assert context.trailing["x-request-id"] == "42"
    fields = next(r.fields for r in caplog.records if r.message == "request")  # type: ignore[attr-defined]
    assert (fields["client"], fields["status"]) == ("::1", "OK")
    assert parts.serving.uploads.held == 0


async def test_the_client_s_deadline(parts: State) -> None:
    """One that cannot be met is refused at once, though the server itself would allow more."""
    context = Context(horse(), deadline=1e-9)
    with pytest.raises(Aborted):
        await handler("ModelInfer", parts)(None, context)
    assert context.trailing["problem-code"] in ("deadline_unreachable", "deadline_exceeded")


async def test_the_unexpected(parts: State, caplog: pytest.LogCaptureFixture) -> None:
    """Is told in the log, and not to the client."""

    async def fail(call: Call) -> Any:
        raise RuntimeError("secret innards")

    context = Context()
    with pytest.raises(Aborted):
        await surrounded("ModelInfer", fail, parts)(None, context)  # type: ignore[arg-type]
    assert context.answer[0] is grpc.StatusCode.INTERNAL and "innards" not in context.answer[1]
    assert "secret innards" in caplog.text


async def test_a_name_that_is_a_book(parts: State) -> None:
    """What names a model is looked at so far and no further."""
    request = messages.ModelReadyRequest(name="x" * 1_000_000).SerializeToString()
    context = Context(request)
    with pytest.raises(Aborted):
        await handler("ModelReady", parts)(None, context)
    assert context.answer[0] is grpc.StatusCode.INVALID_ARGUMENT
