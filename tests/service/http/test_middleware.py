"""The fast path gives the same answers as FastAPI's own layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Message, Receive, Scope, Send

from batching import QueueFull
from service.http import problems
from service.http.context import RequestContext, context_of
from service.http.middleware import FastPath, FastRoute, RequestMiddleware
from service.http.origins import Guard
from service.settings import Settings

router = APIRouter(route_class=FastRoute)


@router.get("/plain")
@router.post("/plain")
async def plain(request: Request) -> Response:
    return Response(await request.body(), 201, {"x-route": request.scope["route"].path})


@router.get("/plain")
async def never(request: Request) -> Response:
    raise AssertionError("of two routes for the same path the first one is called")


@router.get("/of/{name}")
async def of(request: Request) -> Response:
    return Response(request.path_params["name"])


@router.get("/full")
async def full(request: Request) -> Response:
    raise QueueFull("8 items wait already", retry_after=2)


@router.get("/teapot")
async def teapot(request: Request) -> Response:
    raise HTTPException(418)


@router.get("/broken")
async def broken(request: Request) -> Response:
    raise RuntimeError("unexpected")


class Recorder:
    """Records which requests to `app` did not take the fast path."""

    def __init__(self, app: FastAPI, short: bool) -> None:
        self._app = app
        self._stack = ExceptionMiddleware(
            AsyncExitStackMiddleware(app.router), app.exception_handlers
        )
        self.slow: list[str] = []
        self._layers = FastPath(self._slow_path, app.routes) if short else self._slow_path

    async def _slow_path(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.slow.append(f"{scope['method']} {scope['path']}")
        await self._stack(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(app=self._app)
        context_of(scope).request_id = "one"
        await self._layers(scope, receive, send)


def served(short: bool) -> Recorder:
    app = FastAPI(docs_url=None, openapi_url=None, redirect_slashes=False)
    app.router.routes[:0] = router.routes
    for kind in problems.HANDLED:
        app.add_exception_handler(kind, problems.handle)
    return Recorder(app, short)


@pytest.fixture
async def ways() -> AsyncIterator[tuple[Recorder, list[httpx.AsyncClient]]]:
    seen = served(short=True)
    clients = [
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        for app in (seen, served(short=False))
    ]
    yield seen, clients
    for client in clients:
        await client.aclose()


@pytest.mark.parametrize(
    ("method", "path", "status", "past"),
    [
        ("GET", "/plain", 201, True),
        ("POST", "/plain", 201, True),
        ("POST", "/plain?x=1", 201, True),
        ("GET", "/full", 503, True),
        ("GET", "/teapot", 418, True),
        ("DELETE", "/plain", 405, False),
        ("GET", "/of/a", 200, False),
        ("GET", "/of/%7Bname%7D", 200, False),
        ("GET", "/plain/", 404, False),
        ("GET", "/nowhere", 404, False),
    ],
)
async def test_fast_path_gives_the_same_answers(
    ways: tuple[Recorder, list[httpx.AsyncClient]], method: str, path: str, status: int, past: bool
) -> None:
    """Requests for a path without parameters, with a method that it has, take the fast path."""
    seen, clients = ways
    one, other = [await client.request(method, path, content=b"x") for client in clients]
    assert (one.status_code, one.headers, one.content) == (
        other.status_code,
        other.headers,
        other.content,
    )
    assert one.status_code == status
    assert bool(seen.slow) is not past


async def test_fast_path_passes_on_unexpected_errors(
    ways: tuple[Recorder, list[httpx.AsyncClient]],
) -> None:
    for client in ways[1]:
        with pytest.raises(RuntimeError, match="unexpected"):
            await client.get("/broken")


async def test_fast_path_passes_on_the_lifespan() -> None:
    """A scope that is not a request has neither path nor method."""
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await FastPath(app, router.routes)({"type": "lifespan"}, receive, send)
    assert seen == [{"type": "lifespan"}]


class FakeMetrics:
    """Records how requests ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str | None]] = []

    def begin_request(self) -> None:
        pass

    def end_request(
        self, route: str, status: str, seconds: float, stages: Mapping[str, float], code: str | None
    ) -> None:
        self.ended.append((status, code))


class FakeState:
    draining = False


@pytest.mark.parametrize(
    ("disconnected", "canceled", "ended"),
    [
        (True, False, ("499", "client_left")),
        (False, True, ("503", "cut_off")),
        (True, True, ("503", "cut_off")),
    ],
)
async def test_request_middleware_tells_a_disconnect_from_a_shutdown(
    disconnected: bool, canceled: bool, ended: tuple[str, str]
) -> None:
    """A request whose client disconnects ends without an answer. One that the server cancels gets
    an answer, also if its client disconnects at the same time."""
    contexts = list[RequestContext]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        contexts.append(context_of(scope))
        context_of(scope).cancel_on_disconnect()
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    metrics = FakeMetrics()
    middleware = RequestMiddleware(app, metrics, FakeState(), Guard(Settings()), "127.0.0.1")
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"host", b"localhost")],
    }
    task = asyncio.create_task(middleware(scope, receive, send))
    await asyncio.sleep(0)
    if disconnected:
        contexts[0].disconnect()
    if canceled:
        task.cancel()
    await task
    assert metrics.ended == [ended]
