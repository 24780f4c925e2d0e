"""Around every request: an id, its line in the log, its headers, and the last resort.

Plain ASGI, no task and no copy of the body. The route notes in `request.state` what it learns:
`timing` (stage -> seconds) and `code` (of a problem).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import problems, security_headers
from service.http.request_headers import headers
from service.inference.serving import Serving
from service.telemetry.logs import log

SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
ROUTINE = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Asked every few seconds by machines: nothing to tell while all is well."""
CLOSE = (b"connection", b"close")
MAX_TEXT = 1024
"""Characters of what a client sends, such as its path, in a line of the log."""
CLIENT_LEFT = 499  # nginx's number for it; it is logged and never sent


class Count(Protocol):
    """Is told when a request begins and how it ended."""

    def begin_request(self) -> None: ...
    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None: ...


class RequestMiddleware:
    """Request ids, `Server-Timing`, the access log, and an answer to the unexpected."""

    def __init__(self, app: ASGIApp, count: Count, serving: Serving) -> None:
        self._app = app
        self._count = count
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id = _request_id(scope)
        timing: dict[str, float] = {}
        state["timing"] = timing
        status = CLIENT_LEFT
        self._count.begin_request()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = message["headers"]
                told.append((b"x-request-id", request_id.encode()))
                security_headers.tell(scope, told)
                if self._serving.draining and CLOSE not in told:
                    told.append(CLOSE)
                if timing:
                    told.append((b"server-timing", server_timing(timing).encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            state["code"] = "client_left"
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):
                problem = problems.INTERNAL
                log.exception("unexpected error", extra={"fields": {"request_id": request_id}})
            else:  # by the server, when a stop has taken too long
                problem = problems.CUT_OFF
            state["code"] = problem.code
            if status != CLIENT_LEFT:
                raise  # half an answer is out: only cutting the connection tells the client
            response = problems.answer(problem, None, request_id, scope["path"])
            await response(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            code = state.get("code")
            self._count.end_request(route, str(status), seconds, timing, code)
            level = logging.DEBUG if status == 200 and route in ROUTINE else logging.INFO
            if log.isEnabledFor(level):
                about = {
                    "request_id": request_id,
                    "client": scope["client"][0] if scope.get("client") else None,
                    "method": scope["method"],
                    "path": scope["path"],
                }
                log_request(level, about, status, seconds, code, timing)


def _request_id(scope: Scope) -> str:
    """The client's own id if it is sane, else a new one."""
    return sane_id(headers(scope).get(b"x-request-id", b""))


def sane_id(wish: bytes) -> str:
    """The id that a client wants for its request if it is sane, else a new one."""
    return wish.decode() if SANE_ID.fullmatch(wish) else os.urandom(16).hex()


def server_timing(timing: dict[str, float]) -> str:
    """https://www.w3.org/TR/server-timing/: durations in milliseconds."""
    stages = [f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in timing.items()]
    return ", ".join(stages)


def log_request(
    level: int,
    about: Mapping[str, str | None],
    status: int | str,
    seconds: float,
    code: str | None,
    timing: Mapping[str, float],
) -> None:
    """Log the line of a request, over HTTP or gRPC. `about`: its id, client, method and path, of
    which at most `MAX_TEXT` characters each are logged."""
    fields: dict[str, Any] = {name: text and text[:MAX_TEXT] for name, text in about.items()}
    fields |= {"status": status, "seconds": _micro(seconds)}
    if code is not None:
        fields["code"] = code
    for stage, duration in timing.items():
        fields[f"{stage}_seconds"] = _micro(duration)
    # What `log.log` makes of it, without its search for the caller.
    record = logging.LogRecord(log.name, level, "", 0, "request", None, None)
    record.fields = fields
    log.handle(record)


def _micro(seconds: float) -> float:
    """To the microsecond; `round(seconds, 6)` takes three times as long."""
    return round(1e6 * seconds) / 1e6
