"""How many requests a server loses that is told to stop while it has them."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.contestants import GRACE, Server

IN_FLIGHT = 32
HEAD_START = 0.1
"""Seconds in which the requests reach the server before the signal does."""


async def lost_on_stop(server: Server, requests: list[bytes]) -> int:
    """Send 32 at once, SIGTERM, and count those that get no answer with 200."""
    sent = itertools.islice(itertools.cycle(requests), IN_FLIGHT)
    asked = [asyncio.create_task(_answered(server.port, request)) for request in sent]
    await asyncio.sleep(HEAD_START)
    server.terminate()
    return len(asked) - sum(await asyncio.gather(*asked))


async def _answered(port: int, request: bytes) -> bool:
    """Whether a whole answer came, and a good one."""
    try:
        async with asyncio.timeout(GRACE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = _length(head)
                body = await reader.readexactly(length) if length else await reader.read()
                return head.split(b" ", 2)[1] == b"200" and bool(body)
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError):
        return False


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
