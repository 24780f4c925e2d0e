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
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import browsers, errors
from service.logs import log

SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
Count = Callable[[str, int, float, Mapping[str, float], str | None], None]
"""Is told of each request: route, status, seconds, seconds by stage, code of a problem."""
ROUTINE = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
"""Asked every few seconds by machines: nothing to tell while all is well."""
CLIENT_LEFT = 499  # nginx's number for it; it is logged and never sent


class Requests:
    """Request ids, `Server-Timing`, the access log, and an answer to the unexpected."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app = app
        self._count = count

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

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                headers.append((b"x-request-id", request_id.encode()))
                browsers.tell(scope, headers)
                close = (b"connection", b"close")
                if scope["app"].state.serving.draining and close not in headers:
                    headers.append(close)
                if timing:
                    headers.append((b"server-timing", _server_timing(timing)))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            state["code"] = "client_left"
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, Exception):
                problem = errors.INTERNAL
                log.exception("unexpected error", extra={"fields": {"request_id": request_id}})
            else:  # by the server, when a stop has taken too long
                problem = errors.CUT_OFF
            state["code"] = problem.code
            if status != CLIENT_LEFT:
                raise  # half an answer is out: only cutting the connection tells the client
            response = errors.answer(problem, None, request_id, scope["path"])
            await response(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self._count(route, status, seconds, timing, state.get("code"))
            level = logging.DEBUG if status == 200 and route in ROUTINE else logging.INFO
            if log.isEnabledFor(level):
                _log_request(level, scope, state, status, seconds)


def _request_id(scope: Scope) -> str:
    """The client's own id if it is sane, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            sane: str = value.decode()
            return sane
    return os.urandom(16).hex()


def _server_timing(timing: dict[str, float]) -> bytes:
    """https://www.w3.org/TR/server-timing/: durations in milliseconds."""
    stages = [f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in timing.items()]
    return ", ".join(stages).encode()


def _log_request(
    level: int, scope: Scope, state: dict[str, Any], status: int, seconds: float
) -> None:
    fields = {
        "request_id": state["request_id"],
        "client": scope["client"][0] if scope.get("client") else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
    }
    if "code" in state:
        fields["code"] = state["code"]
    for stage, duration in state["timing"].items():
        fields[f"{stage}_seconds"] = round(duration, 6)
    log.log(level, "request", extra={"fields": fields})
