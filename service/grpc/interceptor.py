"""Wraps the methods of all RPCs, to add a request ID, a log line, metrics and a trace span.

The interceptor also turns exceptions into gRPC statuses. For HTTP, `http.middleware` and
`http.problems` do the same. Clients get `x-request-id` and `server-timing` as trailing metadata. If
a call fails, clients also get `problem-code`. If a retry may succeed, clients also get the time to
wait: `retry-after` in seconds, and `grpc-retry-pushback-ms` in milliseconds. Clients with a retry
policy apply `grpc-retry-pushback-ms` automatically
(https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import grpc

from service.grpc.call import Call, Context
from service.grpc.frame_filter import STREAM_HEADER
from service.grpc.messages import SERVICE
from service.grpc.streams import Streams
from service.http import problems
from service.http.context import server_timing
from service.inference.service import Service
from service.telemetry.logs import log, log_request
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

PROBES = ("ServerLive", "ServerReady", "ModelReady")
"""Methods that health checks call every few seconds. Calls of these methods are not traced.
Successful calls are logged at level DEBUG."""
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",  # gRPC's own status for a message that is too large
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Maps HTTP statuses to gRPC statuses (https://grpc.io/docs/guides/status-codes/)."""

Method = Callable[[Call], Awaitable[Any]]
"""A method of the service, which returns the response message or raises an exception."""


def intercepted(
    name: str, method: Method, service: Service, streams: Streams
) -> Callable[[Any, Context], Any]:
    """Wrap a method into the handler that gRPC calls.

    Args:
        name: Name of the RPC.
        method: The method to call.
        service: The service. It contains the metrics and the tracing.
        streams: The streams of all connections.
    """
    route, metrics, tracing = f"/{SERVICE.full_name}/{name}", service.metrics, service.tracing

    async def handler(_: Any, context: Context) -> Any:
        headers = {key: str(value) for key, value in context.invocation_metadata() or ()}
        stream = streams.claim(headers.pop(STREAM_HEADER, ""))
        if stream is None:
            return await _abort(context, "CANCELLED", "The client has canceled the call.")
        call = Call(context, headers, stream)
        try:
            with _span(tracing, route, call):
                return await _answer(call, route, method, metrics)
        finally:
            streams.answer(stream)

    return handler


async def _answer(call: Call, route: str, method: Method, metrics: Metrics) -> Any:
    """Call the method. Returns the response, or ends the call with the status for the exception."""
    started = time.perf_counter()
    status, code = "OK", None
    metrics.begin_request()
    try:
        response = await method(call)
        call.context.set_trailing_metadata(_metadata(call))
        return response
    except asyncio.CancelledError:
        if call.time_left is not None and call.time_left <= 0:
            status, code = "DEADLINE_EXCEEDED", "deadline_exceeded"
        else:
            status, code = "CANCELLED", "client_left"
        raise
    except Exception as error:  # noqa: BLE001  # every exception becomes a status
        problem = problems.problem_for(error)
        status, code = STATUSES[problem.status], problem.code
        if problem is problems.INTERNAL:
            log.exception("unexpected error", extra={"fields": {"request_id": call.request_id}})
        detail = problems.to_dict(problem, error, call.request_id)["detail"]
        metadata = _metadata(call, problem, error)
    finally:
        seconds = time.perf_counter() - started
        metrics.end_request(route, status, seconds, call.timing, code)
        _log(call, route, status, seconds, code)
    # `_abort` is called after the `except` block. Inside the block, Python would set `error` as the
    # context of gRPC's exception, which would keep the message in memory.
    return await _abort(call.context, status, detail, metadata)


async def _abort(
    context: Context, status: str, detail: str, metadata: tuple[tuple[str, str], ...] = ()
) -> None:
    """End the call with an error status.

    gRPC raises an AbortError, and the call refers to this exception. The traceback of the
    AbortError refers to the call. This reference cycle would keep the call in memory until a
    garbage collection, so the traceback is removed.
    """
    try:
        await context.abort(grpc.StatusCode[status], detail, metadata)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = None


def _log(call: Call, route: str, status: str, seconds: float, code: str | None) -> None:
    level = logging.DEBUG if status == "OK" and route.endswith(PROBES) else logging.INFO
    if log.isEnabledFor(level):
        fields = {
            "request_id": call.request_id,
            "client": call.client,
            "method": "gRPC",
            "path": route,
        }
        log_request(level, fields, status, seconds, code, call.timing)


def _span(tracing: Tracing | None, route: str, call: Call) -> Any:
    if tracing is None or route.endswith(PROBES):
        return nullcontext()
    # https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
    attributes = {"rpc.system": "grpc", "rpc.method": route[1:]}
    return tracing.request_span(route[1:], call.headers, attributes)


def _metadata(
    call: Call, problem: problems.Problem | None = None, error: Exception | None = None
) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata of a response or of an error.

    Args:
        call: The call.
        problem: The entry for the exception in the table of `http.problems`. None: the call
            succeeded.
        error: The exception. None: the call succeeded.
    """
    metadata = [("x-request-id", call.request_id)]
    if call.timing:
        metadata.append(("server-timing", server_timing(call.timing)))
    if problem is not None:
        metadata.append(("problem-code", problem.code))
        if (seconds := problems.retry_after(problem, error)) is not None:
            metadata.append(("retry-after", str(seconds)))
            metadata.append(("grpc-retry-pushback-ms", str(1000 * seconds)))
    return tuple(metadata)
