"""Counts the requests that a server loses when it is told to stop while it has them."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.processes import GRACE
from benchmarks.servers import Server
from shoal.load.connection import connect

IN_FLIGHT = 32
HEAD_START = 0.1
"""Seconds between the requests and the signal."""


async def lost_on_stop(server: Server, requests: list[bytes]) -> int:
    """Sends requests at the same time, then SIGTERM.

    Returns:
        The number of requests without a complete answer of status 200, of `IN_FLIGHT`.
    """
    sent = itertools.islice(itertools.cycle(requests), IN_FLIGHT)
    answers = [asyncio.create_task(_succeeds(server.port, request)) for request in sent]
    await asyncio.sleep(HEAD_START)
    server.process.terminate()
    return len(answers) - sum(await asyncio.gather(*answers))


async def _succeeds(port: int, request: bytes) -> bool:
    try:
        connection = await connect("127.0.0.1", port)
    except OSError:
        return False
    status, body = await connection.request(request, GRACE)
    connection.close()
    return status == 200 and bool(body)
