"""Tests what the interceptor adds to every RPC: statuses, metadata and log lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.grpc.call import Call
from service.grpc.interceptor import STATUSES, intercepted
from service.grpc.streams import Streams
from service.http.problems import CUT_OFF, INTERNAL, PROBLEMS
from service.inference.service import Service
from tests.fakes import FakeEngine
from tests.service.grpc.calls import (
    Aborted,
    AnyStream,
    Context,
    application,
    handler,
    horse,
    ignore,
    streams_of,
)


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[Service]:
    async with application(engine) as service:
        yield service


RPC_PROBLEMS = {
    problem
    for problem in (*PROBLEMS.values(), INTERNAL)
    if problem.code not in ("unknown_host", "cross_site", "repository_off", "change_under_way")
}
"""Problems other than those that only HTTP requests can have."""


def test_every_problem_has_a_status() -> None:
    """The HTTP status of each problem that an RPC can have maps to an existing status of gRPC."""
    for problem in RPC_PROBLEMS:
        assert STATUSES[problem.status] in grpc.StatusCode.__members__, problem.code
    assert STATUSES[CUT_OFF.status] == "UNAVAILABLE"


async def test_response_has_the_request_id(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's request id is in the trailing metadata, and the log has client and status."""
    caplog.set_level("INFO")
    context = Context(horse(), x_request_id="42")
    response = await handler("ModelInfer", service)(None, context)
    assert list(response.outputs[0].contents.bytes_contents) == [b"horse"]
    assert context.trailing["x-request-id"] == "42"
    fields = next(r.fields for r in caplog.records if r.message == "request")  # type: ignore[attr-defined]
    assert (fields["client"], fields["status"]) == ("::1", "OK")
    assert service.uploads.held == 0


async def test_unexpected_error_is_logged_only(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception is in the log, and the client gets INTERNAL without its text."""

    async def fail(call: Call) -> Any:
        raise RuntimeError("secret innards")

    context = Context()
    streams = AnyStream(service.uploads, 8)
    with pytest.raises(Aborted):
        await intercepted("ModelInfer", fail, service, streams)(None, context)  # type: ignore[arg-type]
    assert context.status is grpc.StatusCode.INTERNAL and "innards" not in context.details
    assert "secret innards" in caplog.text


async def test_call_without_a_stream_is_canceled(service: Service) -> None:
    """A call whose stream was closed before its handler began is canceled and not read."""
    context = Context(horse(), shoal_stream="4711")
    with pytest.raises(Aborted):
        await handler("ModelInfer", service)(None, context)
    assert context.status is grpc.StatusCode.CANCELLED and not context.reads


async def test_stream_name_belongs_to_one_call(service: Service) -> None:
    """A second call with the name of a stream is canceled. The first call is not affected."""
    streams, message = streams_of(service), horse()
    stream = streams.open("::1", ignore, ignore)
    first, second = (Context(message, shoal_stream=stream.name) for _ in range(2))
    first.sends.clear()
    response = asyncio.create_task(handler("ModelInfer", service, streams)(None, first))
    await first.waiting.wait()
    with pytest.raises(Aborted):
        await handler("ModelInfer", service, streams)(None, second)
    assert second.status is grpc.StatusCode.CANCELLED and not second.reads
    assert not stream.taken and not stream.answered
    first.sends.set()
    await response


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_canceled_message_gets_a_status(service: Service, name: str) -> None:
    """A message that makes room for another gets UNAVAILABLE and the time to wait, whether it is
    canceled before its handler reads it or meanwhile."""
    for before in True, False:
        streams = Streams(service.uploads, 1)
        stream = streams.open("::1", ignore, ignore)
        context = Context(shoal_stream=stream.name)
        context.sends.clear()
        if before:
            streams.open("::1", ignore, ignore)
        response = asyncio.create_task(handler(name, service, streams)(None, context))
        if not before:
            await context.waiting.wait()
            streams.open("::1", ignore, ignore)
        with pytest.raises(Aborted):
            await response
        assert context.status is grpc.StatusCode.UNAVAILABLE
        assert context.trailing["problem-code"] == "too_many_messages"
        assert context.trailing["retry-after"] == "1" and stream.answered
