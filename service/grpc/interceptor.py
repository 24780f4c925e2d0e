"""Wraps every RPC: request id, log line, metrics, trace span, and the status of an error.

It does for gRPC what `http.middleware` and `http.problems` do for HTTP. Clients get `x-request-id`
and `server-timing` as trailing metadata. An error also has its `problem-code` and, if a retry may
help, the time to wait: `retry-after` in seconds, and `grpc-retry-pushback-ms`, which clients with a
retry policy follow automatically
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
"""Methods that probes call every few seconds. Their successful calls are not traced, and are logged
at level DEBUG."""
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
"""Maps the HTTP status of a problem to gRPC's (https://grpc.io/docs/guides/status-codes/)."""

Method = Callable[[Call], Awaitable[Any]]
"""Returns the response message, or raises an exception of `http.problems.PROBLEMS`."""


def intercepted(
    name: str, method: Method, service: Service, streams: Streams
) -> Callable[[Any, Context], Any]:
    """Wrap a method into the handler that gRPC calls.

    Args:
        name: Name of the RPC.
        method: The method.
        service: The service, for its metrics and tracing.
        streams: The streams of all connections.
    """
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
    # Not in the `except` block: gRPC's exception would refer to `error`, and so to the message.
    return await _abort(call.context, status, detail, metadata)


async def _abort(
    context: Context, status: str, detail: str, metadata: tuple[tuple[str, str], ...] = ()
) -> None:
    """End the call with an error.

    gRPC keeps its exception with the call, and raises it again after the handler. Its traceback
    would refer to the call, so that both would stay until the next garbage collection.
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
    """The trailing metadata of a response, or of a problem."""
    metadata = [("x-request-id", call.request_id)]
    if call.timing:
        metadata.append(("server-timing", server_timing(call.timing)))
    if problem is not None:
        metadata.append(("problem-code", problem.code))
        if (seconds := problems.retry_after(problem, error)) is not None:
            metadata.append(("retry-after", str(seconds)))
            metadata.append(("grpc-retry-pushback-ms", str(1000 * seconds)))
    return tuple(metadata)
