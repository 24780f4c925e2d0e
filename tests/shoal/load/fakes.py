"""Scripted servers for the load generator, and samples as it would measure them."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from shoal.load import images
from shoal.load.generator import Generator, Job, Samples
from shoal.load.images import Picture

HORSE = b'{"class": "horse", "probability": 0.9}'
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = HORSE, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def served(handle: Handle) -> AsyncIterator[str]:
    """Runs a server that calls `handle` for each connection. Broken connections are ignored."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/predict"


async def load(
    url: str,
    expected: str | None = None,
    requests: Sequence[bytes] | None = None,
    **settings: Any,
) -> Samples:
    """Generates a load of half a second.

    Args:
        url: Where to send requests.
        expected: The class that answers must name. None: any class.
        requests: The requests. None: one that ends with `pixels`.
        settings: Other fields of the job.
    """
    picture = Picture("a.jpg", b"pixels", None)
    requests = requests or [images.request(urllib.parse.urlsplit(url), picture, raw=True)]
    defaults: dict[str, Any] = {"duration": 0.5, "timeout": 60.0, "seed": 1, "times": None}
    job = Job(url, requests, [expected] * len(requests), **{**defaults, **settings})
    return await Generator(job, lambda answered, failed: None).run()


async def read_one(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\npixels")


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await read_one(reader)
        writer.write(response())


def samples_of(statuses: list[int], seconds: float = 0.1) -> Samples:
    """Returns samples spread over a second, with latencies of `seconds` times 1, 2, 3 and so on."""
    count = len(statuses)
    return Samples(
        intended=[n / count for n in range(count)],
        latency=[seconds * (n + 1) for n in range(count)],
        status=statuses,
    )
