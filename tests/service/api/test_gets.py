"""What GET requests that need no key cost."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Iterator

import httpx
from starlette.types import ASGIApp, Message, Scope

from service.app import create_app
from service.settings import Settings
from tests.fakes import FakeEngine

TIMES = 20
"""Maximum CPU time of a GET request, in those of `/healthz`."""
ROUNDS, REQUESTS = 5, 20
LONG = 60_000
"""Bytes of a path, near the maximum size of a head."""


def paths(links: Iterable[str]) -> Iterator[str]:
    """Every route and every link, and long paths below and beside them."""
    routes = create_app(Settings(), FakeEngine().load).routes
    for path in {*(getattr(route, "path", "") for route in routes), *links}:
        path = path.format_map({"model": "fake", "version": "8"})
        yield path
        for folder in path, path.rpartition("/")[0]:
            for part in "../", "a/", "a":
                yield folder + "/" + part * (LONG // len(part))


async def get(app: ASGIApp, path: str) -> None:
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "http_version": "1.1",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost")],
    }

    body = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        for message in body:
            return message
        return await asyncio.Future()  # until the answer is complete

    async def send(message: Message) -> None: ...

    await app(scope, receive, send)


async def cpu_seconds(app: ASGIApp, path: str) -> float:
    """Of all threads, for one request: the least of several rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(REQUESTS):
            await get(app, path)
        rounds.append((time.process_time() - started) / REQUESTS)
    return min(rounds)


async def test_no_get_without_a_key_is_expensive() -> None:
    """Whatever path a client asks for, a GET takes at most 20 times the CPU time of `/healthz`."""
    app = create_app(Settings(), FakeEngine().load)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        links = re.findall(r'(?:src|href)="(/.*?)"', (await client.get("/docs")).text)
        assert len(links) == 3, "a script, its style and an icon"
        base = await cpu_seconds(app, "/healthz")
        times = {path: await cpu_seconds(app, path) / base for path in {*paths(links)}}
    assert {path[:80]: ratio for path, ratio in times.items() if ratio > TIMES} == {}
