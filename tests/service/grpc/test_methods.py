"""Tests the methods with a fake context: limits, deadlines and versions.

tests/e2e/test_rpc.py has the tests with a real client.
"""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from model_store import manifest
from service.errors import RateLimited
from service.grpc import messages, methods
from service.inference.service import Service
from service.rate_limit import RateLimiter, network
from service.upload.body import UploadMemory
from tests.fakes import MODEL, FakeEngine
from tests.service.conftest import png
from tests.service.grpc.calls import (
    Aborted,
    Context,
    application,
    handler,
    horse,
    ignore,
    streams_of,
)

PATIENCE = 20.0


@pytest.fixture
async def service(engine: FakeEngine) -> AsyncIterator[Service]:
    async with application(engine) as service:
        yield service


async def test_message_counts_until_it_is_inferred(service: Service) -> None:
    """The bytes of a message count once: for its stream, then for its request, then no more."""
    streams, message = streams_of(service), horse()
    stream = streams.open("::1", ignore, ignore)
    context = Context(message, shoal_stream=stream.name)
    context.sends.clear()
    response = asyncio.create_task(handler("ModelInfer", service, streams)(None, context))
    await context.waiting.wait()
    streams.receive(stream, len(message))
    assert service.uploads.held == len(message)
    context.sends.set()
    await response
    assert service.uploads.held == 0 and stream.taken and stream.answered


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady"])
async def test_client_that_does_not_send_times_out(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that does not arrive in time gets DEADLINE_EXCEEDED."""
    service.uploads = UploadMemory(2**20, max_seconds=0.01)
    streams = streams_of(service)
    stream = streams.open("::1", ignore, ignore)
    context = Context(shoal_stream=stream.name)
    context.sends.clear()
    monkeypatch.setattr(methods, "NAME_SECONDS", 0.01)
    with pytest.raises(Aborted):
        await handler(name, service, streams)(None, context)
    assert context.status is grpc.StatusCode.DEADLINE_EXCEEDED
    assert context.trailing["problem-code"] == "upload_timeout"


async def test_rate_limit_holds_for_http_and_grpc_together(service: Service) -> None:
    """A client that has used up its rate over HTTP is rejected, and its message is not read."""
    rates = RateLimiter(0.01, 1)
    rates.take(network("::1"), time.monotonic())
    service.rate_limiter = rates
    context = Context(b"")
    with pytest.raises(Aborted):
        await handler("ModelInfer", service)(None, context)
    assert context.status is grpc.StatusCode.RESOURCE_EXHAUSTED and not context.reads
    assert context.trailing["problem-code"] == "rate_limited"
    assert context.trailing["retry-after"] == "60"
    assert context.trailing["grpc-retry-pushback-ms"] == "60000"


@pytest.mark.parametrize("image", [png(7), b"hello"], ids=["good", "broken"])
async def test_rate_limit_counts_all_images(service: Service, image: bytes) -> None:
    """A message with n images counts as n, whether they can be decoded or not."""
    rates = RateLimiter(0.001, 5)
    service.rate_limiter = rates
    message = messages.ModelInferRequest(model_name="fake")
    tensor = message.inputs.add(name="image", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([image] * 2)
    with contextlib.suppress(Aborted):
        await handler("ModelInfer", service)(None, Context(message.SerializeToString()))
    for _ in range(3):
        rates.take(network("::1"), time.monotonic())
    with pytest.raises(RateLimited):
        rates.take(network("::1"), time.monotonic())


async def test_upload_memory_is_shared_with_http(service: Service) -> None:
    """A message is rejected if uploads over HTTP have taken the upload memory."""
    with service.uploads.lease(service.uploads.max_bytes) as lease:
        lease.add(service.settings.max_upload_memory)
        streams = streams_of(service)
        stream = streams.open("::1", ignore, ignore)
        streams.receive(stream, 1)
        context = Context(b"", x_request_id="42", shoal_stream=stream.name)
        with pytest.raises(Aborted):
            await handler("ModelInfer", service, streams)(None, context)
    assert context.status is grpc.StatusCode.UNAVAILABLE and not context.reads
    assert context.trailing == {
        "x-request-id": "42",
        "problem-code": "upload_memory_full",
        "retry-after": "1",
        "grpc-retry-pushback-ms": "1000",
    }


async def test_infer_does_not_substitute_a_named_version(
    service: Service, engine: FakeEngine, tmp_path: pathlib.Path
) -> None:
    """If the version changes while a request waits, a request that names the old one is rejected,
    and another gets a response that names the new one."""
    folder = tmp_path / "fake" / "8"
    folder.mkdir(parents=True)
    manifest.write(folder, MODEL.model_copy(update={"version": "8"}))
    infer = handler("ModelInfer", service)
    engine.goes_on.clear()
    first = asyncio.create_task(infer(None, Context(horse("7"))))
    await engine.called.wait()
    named, any_version = Context(horse("7")), Context(horse())
    waiting = [asyncio.create_task(infer(None, context)) for context in (named, any_version)]
    async with asyncio.timeout(PATIENCE):
        while (await queue_length(service)) < 2:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.001)
    await service.engine.replace(folder)  # type: ignore[attr-defined]  # a ModelHost
    engine.goes_on.set()
    assert (await first).model_version == "7"
    with pytest.raises(Aborted):
        await waiting[0]
    assert named.status is grpc.StatusCode.NOT_FOUND
    assert (await waiting[1]).model_version == "8"


async def queue_length(service: Service) -> int:
    """Number of images in the queue."""
    stats = await service.engine_stats()
    return stats.queued if stats is not None else 0


async def test_infer_rejects_a_deadline_that_cannot_be_met(service: Service) -> None:
    """The client's deadline holds if it is earlier than the server's."""
    context = Context(horse(), deadline=1e-9)
    with pytest.raises(Aborted):
        await handler("ModelInfer", service)(None, context)
    assert context.trailing["problem-code"] in ("deadline_unreachable", "deadline_exceeded")


async def test_model_ready_parses_a_few_bytes_only(service: Service) -> None:
    """A message that names a model is not parsed beyond `NAME_BYTES`."""
    request = messages.ModelReadyRequest(name="x" * 1_000_000).SerializeToString()
    context = Context(request)
    with pytest.raises(Aborted):
        await handler("ModelReady", service)(None, context)
    assert context.status is grpc.StatusCode.INVALID_ARGUMENT
