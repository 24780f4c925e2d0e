"""Slow clients, which send a byte per second, half of them in the head and half in the body.

    python -m tests.faults.slow URL COUNT

They connect one after the other, and again when they are cut off. They run as a separate process,
so that they take no time from the one that measures. It prints `there` when all are connected.
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
"""Seconds over which they connect."""
AWAY = 2.0
"""Maximum seconds until a client that was cut off connects again."""


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
    """Connects after `after` seconds, and again whenever it is cut off."""
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
    """Runs slow clients for the duration of the block. All are connected when it begins."""
    command = [sys.executable, "-m", "tests.faults.slow", url, str(count)]
    with started(command, grace=0, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield


if __name__ == "__main__":
    uvloop.run(crowd(sys.argv[1], int(sys.argv[2])))
