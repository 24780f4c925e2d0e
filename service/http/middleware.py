"""Defines the ASGI middleware around the endpoints.

`RequestMiddleware` is the outermost layer. It assigns request IDs, checks the host, adds response
headers, writes the access log and the metrics, and responds to unexpected errors. `FastPath` is the
innermost layer. It calls endpoints directly, to save the time that FastAPI's layers take.

The middleware creates no task for a request, and does not copy bodies.
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
CLIENT_LEFT = 499
"""Status in the log if the client disconnects before the response. nginx logs the same status."""


class RequestMetrics(Protocol):
    """Counts requests. `service.telemetry.metrics.Metrics` is one implementation."""

    def begin_request(self) -> None: ...
    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None: ...


class ServerState(Protocol):
    """The state of the server. `service.inference.service.Service` is one implementation."""

    draining: bool
    """Whether the server is shutting down."""


class RequestMiddleware:
    """ASGI middleware for all requests. The docstring of the module lists its tasks."""

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
            app: The application to call.
            metrics: Counts the requests.
            state: The state of the server. During a shutdown, each connection is closed after its
                response.
            guard: Rejects requests for unknown hosts, and cross-site requests.
            trusted_proxies: Addresses and networks of trusted proxies, separated by commas.
                `X-Forwarded-*` headers of other clients are ignored.
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
                context.task = None  # from now on, a disconnect cancels nothing
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
            else:  # the server canceled the request, because the shutdown took too long
                problem = problems.CUT_OFF
            context.code = problem.code
            if status != CLIENT_LEFT:
                # Part of a response was sent. Closing the connection tells the client about the
                # error.
                raise
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
        """Call the application if the guard accepts the request.

        To save time, the guard is skipped if it has accepted the host before, and the request has
        no headers of browsers or proxies.
        """
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
    """Whether the task was canceled only because the client disconnected.

    In that case, the function also clears one cancellation of the task (`Task.uncancel`). Returns
    False if the server also canceled the task, so that the task still ends.
    """
    if not (context.disconnected and isinstance(error, asyncio.CancelledError)):
        return False
    task = asyncio.current_task()
    return task is not None and not task.uncancel()


class FastRoute(APIRoute):
    """A route with an endpoint that takes a `Request` and returns a `Response`.

    Such an endpoint does not use FastAPI's parsing of requests, so `FastPath` can call it directly.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of `APIRoute`."""
        super().__init__(*args, **kwargs)
        self.app = self._call

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class FastPath:
    """ASGI middleware that calls the endpoint of a `FastRoute` directly, without FastAPI's layers.

    All other requests are passed on to the application. Examples are requests for other routes, for
    paths with parameters, or with a method that the route does not support.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """
        Args:
            app: The application to call for all other requests.
            routes: Routes of the application. If several routes have the same path and method, the
                first one is called.
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
