"""Around every RPC: an id, its line in the log, its count, its span, and the answer to an error.

What `middleware` and the table of `errors` are over HTTP. `x-request-id` and `server-timing` come
back as trailing metadata, and with an error its `problem-code` and, where trying again may help,
the wait: `retry-after` in seconds for people and programs, and `grpc-retry-pushback-ms`, which
clients with a retry policy keep to by themselves
(https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import grpc

from service import errors
from service.grpc.messages import SERVICE
from service.grpc.relay import STREAM_HEADER
from service.grpc.streams import Stream, Streams
from service.http import problems
from service.http.context import request_id, server_timing
from service.inference.service import Service
from service.telemetry.logs import log, log_request
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing
from service.upload.arrival import Arrival
from service.upload.body import CHECK_INTERVAL

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
ROUTINE = ("ServerLive", "ServerReady", "ModelReady")
"""Asked every few seconds by machines: nothing to tell while all is well."""


class Call:
    """One RPC, as its method sees it."""

    def __init__(self, context: Context, headers: dict[str, str], stream: Stream) -> None:
        self.context = context
        self.headers = headers
        self.client = stream.client
        self._stream = stream
        self.timing: dict[str, float] = {}
        self.request_id = request_id(self.headers.get("x-request-id", "").encode())

    async def message(self, max_seconds: float) -> bytes:
        """Receive the client's message.

        Raises UploadTimeout where it does not arrive within `max_seconds` or arrives too slowly,
        QueueFull where it has to make room for others, BadInference where the client sends none,
        and CancelledError where it is larger than allowed, which gRPC answers by itself.
        """
        if self._stream.fault is not None:
            raise self._stream.fault
        self._stream.share.max_seconds = max_seconds
        with Arrival(self._stream.share, CHECK_INTERVAL):
            found = await self.context.read()
        if not isinstance(found, bytes):
            raise errors.BadInference("The call has no message.")
        self._stream.take()
        return found

    @property
    def time_left(self) -> float | None:
        """Seconds until the client's deadline, if it has one."""
        return self.context.time_remaining()


Method = Callable[[Call], Awaitable[Any]]
"""Gives the message that answers, or raises what the table of `errors` has."""


def surrounded(
    name: str, method: Method, service: Service, streams: Streams
) -> Callable[[Any, Context], Any]:
    """The handler that gRPC calls for the RPC `name`."""
    route, metrics, tracing = f"/{SERVICE.full_name}/{name}", service.metrics, service.tracing

    async def handler(_: Any, context: Context) -> Any:
        headers = {key: str(value) for key, value in context.invocation_metadata() or ()}
        stream = streams.claim(headers.pop(STREAM_HEADER, ""))
        if stream is None:
            return await _abort(context, "CANCELLED", "The client has ended the call.")
        call = Call(context, headers, stream)
        try:
            with _span(tracing, route, call):
                return await _answer(call, route, method, metrics)
        finally:
            streams.answer(stream)

    return handler


async def _answer(call: Call, route: str, method: Method, metrics: Metrics) -> Any:
    started = time.perf_counter()
    status, code = "OK", None
    metrics.begin_request()
    try:
        answer = await method(call)
        call.context.set_trailing_metadata(_metadata(call))
        return answer
    except asyncio.CancelledError:
        if call.time_left is not None and call.time_left <= 0:
            status, code = "DEADLINE_EXCEEDED", "deadline_exceeded"
        else:
            status, code = "CANCELLED", "client_left"
        raise
    except Exception as error:  # noqa: BLE001  # answered by the table, and told where it is not there
        problem = problems.problem_for(error)
        status, code = problems.RPC_STATUS[problem.status], problem.code
        if problem is problems.INTERNAL:
            log.exception("unexpected error", extra={"fields": {"request_id": call.request_id}})
        detail = problems.to_dict(problem, error, call.request_id)["detail"]
        metadata = _metadata(call, problem, error)
    finally:
        seconds = time.perf_counter() - started
        metrics.end_request(route, status, seconds, call.timing, code)
        routine = status == "OK" and route.endswith(ROUTINE)
        level = logging.DEBUG if routine else logging.INFO
        if log.isEnabledFor(level):
            about = {
                "request_id": call.request_id,
                "client": call.client,
                "method": "gRPC",
                "path": route,
            }
            log_request(level, about, status, seconds, code, call.timing)
    # Not in the `except` block: gRPC's exception would refer to `error`, and so to the message.
    return await _abort(call.context, status, detail, metadata)


async def _abort(
    context: Context, status: str, detail: str, metadata: tuple[tuple[str, str], ...] = ()
) -> None:
    """End the call with an error.

    gRPC keeps its exception with the call and raises it again after the handler. The traceback
    would refer to the call, so that both would stay until the next garbage collection.
    """
    try:
        await context.abort(grpc.StatusCode[status], detail, metadata)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = None


def _span(tracing: Tracing | None, route: str, call: Call) -> Any:
    if tracing is None or route.endswith(ROUTINE):
        return nullcontext()
    # https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
    attributes = {"rpc.system": "grpc", "rpc.method": route[1:]}
    return tracing.requested(route[1:], call.headers, attributes)


def _metadata(
    call: Call, problem: problems.Problem | None = None, error: Exception | None = None
) -> tuple[tuple[str, str], ...]:
    found = [("x-request-id", call.request_id)]
    if call.timing:
        found.append(("server-timing", server_timing(call.timing)))
    if problem is not None:
        found.append(("problem-code", problem.code))
        if (seconds := problems.retry_after(problem, error)) is not None:
            found.append(("retry-after", str(seconds)))
            found.append(("grpc-retry-pushback-ms", str(1000 * seconds)))
    return tuple(found)
