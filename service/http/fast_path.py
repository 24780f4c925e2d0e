"""Routes that want nothing of the framework's but to be found and described, and a way to them.

FastAPI injects, validates and cleans up around an endpoint, and Starlette looks at one route after
another. An endpoint here takes the request, returns the response or raises, and reads its own body;
so all that is left to do around it is to find it and to answer what it raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http import problems


class FastRoute(APIRoute):
    """Calls the endpoint with the request. What it raises is answered by the application's table
    like that of any other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._call

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class FastPath:
    """To those of `routes` that are `FastRoute` and have one path and not a pattern of many, past
    `app`, the framework's layers: each of them costs every request. Whatever else there is goes
    through them, also what asks for such a path with another method.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        # Of two for the same path and method the framework would take the first.
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
        except problems.ANSWERED as error:
            response = await problems.handle(request, error)
        await response(scope, receive, send)
