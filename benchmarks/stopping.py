"""Counts the requests in flight that a server loses when it receives SIGTERM."""

from __future__ import annotations

import asyncio
import itertools

from benchmarks.processes import GRACE
from benchmarks.servers import Server
from shoal.load.connection import connect

IN_FLIGHT = 32
"""Number of requests that are sent."""
HEAD_START = 0.1
"""Seconds from sending the requests to sending SIGTERM."""


async def lost_on_stop(server: Server, requests: list[bytes]) -> int:
    """Sends `IN_FLIGHT` requests at the same time, and then SIGTERM.

    Args:
        server: The server.
        requests: Requests to send. The list is repeated until there are `IN_FLIGHT` requests.

    Returns:
        The number of requests without a complete response of status 200.
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
