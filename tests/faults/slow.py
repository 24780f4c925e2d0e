"""Slow clients: a byte a second each, half of them in their heads and half in their bodies. They
come one after the other, as clients do that know nothing of each other, and who is cut off comes
again.

    python -m tests.faults.slow URL COUNT

A process of its own, so that they take no time from whoever measures. Says `there` when all are.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import httpx
import uvloop

from benchmarks.processes import started
from tests.e2e.process import ROOT
from tests.e2e.test_clients import BODY, HEAD

SPREAD = 6.0
"""Seconds over which they come."""
AWAY = 2.0
"""Seconds within which one that was cut off comes again."""


class SlowClient(asyncio.Protocol):
    def __init__(self, first: bytes, cut: asyncio.Future[None]) -> None:
        self._next, self._cut = first, cut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._cut.set_result(None)

    def _send(self) -> None:
        self._transport.write(self._next)
        self._next = b"x"
        self._timer = asyncio.get_running_loop().call_later(1, self._send)


async def be_slow(host: str, port: int, first: bytes, after: float) -> None:
    """From `after` seconds on, for ever."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(after)
    while True:
        cut: asyncio.Future[None] = loop.create_future()
        with contextlib.suppress(OSError):
            await loop.create_connection(lambda: SlowClient(first, cut), host, port)  # noqa: B023
            await cut
        await asyncio.sleep(AWAY * random.random())


async def crowd(url: str, count: int) -> None:
    at = httpx.URL(url)
    clients = [
        be_slow(at.host, at.port or 80, HEAD if number % 2 else BODY, SPREAD * number / count)
        for number in range(count)
    ]
    tasks = [asyncio.create_task(client) for client in clients]
    await asyncio.sleep(SPREAD + 1)
    print("there", flush=True)
    await asyncio.gather(*tasks)


@contextmanager
def slow_clients(url: str, count: int) -> Iterator[None]:
    """Within, all of them are there."""
    command = [sys.executable, "-m", "tests.faults.slow", url, str(count)]
    with started(command, grace=0, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield


if __name__ == "__main__":
    uvloop.run(crowd(sys.argv[1], int(sys.argv[2])))
