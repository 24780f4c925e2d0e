"""Everything around the endpoints: request IDs, host check, response headers, access log, metrics.

Plain ASGI: no task per request and no copy of the body. `RequestMiddleware` is the outermost layer,
and answers errors that no other layer expects. `FastPath` is the innermost: it calls the endpoint
of a request without FastAPI's layers, which cost every request some of the event loop's time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http import problems
from service.http.context import CONTEXT, RequestContext
from service.http.origins import BROWSER_HEADERS, PROBE_PATHS, Guard
from service.http.proxies import PROXY_HEADERS, ProxyHeaders
from service.http.security_headers import FOR_POST, for_get
from service.telemetry.logs import log, log_request

CLOSE = (b"connection", b"close")
CLIENT_LEFT = 499  # nginx's status for it; it is logged and never sent


class RequestMetrics(Protocol):
    """Counts requests. `service.telemetry.metrics.Metrics` is one."""

    def begin_request(self) -> None: ...
    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None: ...


class ServerState(Protocol):
    """Knows whether the server is shutting down. `service.inference.service.Service` is one."""

    draining: bool


class RequestMiddleware:
    """ASGI middleware: request IDs, host check, response headers, access log, unexpected errors."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics,
        state: ServerState,
        guard: Guard,
        trusted_proxies: str,
    ) -> None:
        """
        Args:
            app: The application inside.
            metrics: Counts the requests.
            state: While it is draining, every connection is closed after its answer.
            guard: Rejects requests for unknown hosts, and cross-site requests.
            trusted_proxies: Addresses and networks, separated by commas, whose `X-Forwarded-*`
                headers are read.
        """
        self._app = app
        self._metrics = metrics
        self._state = state
        self._guard = guard
        self._behind_proxy = ProxyHeaders(self._check, trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        context: RequestContext = scope.get(CONTEXT) or scope.setdefault(CONTEXT, RequestContext())
        context.read_headers(scope)
        status = CLIENT_LEFT
        self._metrics.begin_request()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                context.task = None  # the work is done
                headers = message["headers"]
                headers.append((b"x-request-id", context.request_id.encode()))
                headers += FOR_POST if scope["method"] == "POST" else for_get(scope, headers)
                if self._state.draining and CLOSE not in headers:
                    headers.append(CLOSE)
                if context.timing:
                    headers.append((b"server-timing", context.server_timing().encode()))
            await send(message)

        app = self._check if PROXY_HEADERS.isdisjoint(context.headers) else self._behind_proxy
        try:
            await app(scope, receive, send_with_headers)
        except ClientDisconnect:
            context.code = "client_left"
        except (Exception, asyncio.CancelledError) as error:
            if _was_disconnected(context, error):
                context.code = "client_left"
                return
            if isinstance(error, Exception):
                problem = problems.INTERNAL
                fields = {"request_id": context.request_id}
                log.exception("unexpected error", extra={"fields": fields})
            else:  # canceled by the server, because shutting down has taken too long
                problem = problems.CUT_OFF
            context.code = problem.code
            if status != CLIENT_LEFT:
                raise  # part of the answer is sent: only closing the connection tells the client
            response = problems.answer(problem, None, context.request_id, scope["path"])
            await response(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            stages = context.timing
            self._metrics.end_request(route, str(status), seconds, stages, context.code)
            level = logging.DEBUG if status == 200 and route in PROBE_PATHS else logging.INFO
            if log.isEnabledFor(level):
                request = {
                    "request_id": context.request_id,
                    "client": scope["client"][0] if scope.get("client") else None,
                    "method": scope["method"],
                    "path": scope["path"],
                }
                log_request(level, request, status, seconds, context.code, stages)

    async def _check(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Apply the guard. It has nothing to check if it accepted the host before and the request
        has no header that only browsers and proxies send."""
        headers = scope[CONTEXT].headers
        accepted = headers.get(b"host") in self._guard.accepted
        if not (accepted and BROWSER_HEADERS.isdisjoint(headers)):
            try:
                self._guard.check(scope)
            except self._guard.rejections as error:
                response = await problems.handle(Request(scope), error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _was_disconnected(context: RequestContext, error: BaseException) -> bool:
    """Whether `error` is the cancellation by `context.disconnect`, which ends here. If the server
    has canceled the task as well, that cancellation counts."""
    if not (context.disconnected and isinstance(error, asyncio.CancelledError)):
        return False
    task = asyncio.current_task()
    return task is not None and not task.uncancel()


class FastRoute(APIRoute):
    """A route whose endpoint takes the request, reads its body and returns the response.

    Such an endpoint needs nothing that FastAPI does around an endpoint, so `FastPath` can call it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._call

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class FastPath:
    """ASGI middleware that calls the endpoints of `FastRoute`s whose path has no parameters.

    All other requests take the usual way, also those for the same path with another method.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """
        Args:
            app: The application inside.
            routes: Its routes. Of two for the same path and method, the first one is called.
        """
        self._app = app
        self._routes = {
            (method, route.path): route
            for route in reversed([*routes])
            if isinstance(route, FastRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response: Response = await route.endpoint(request)
        except problems.HANDLED as error:
            response = await problems.handle(request, error)
        await response(scope, receive, send)
