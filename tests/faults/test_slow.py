"""A thousand slow clients beside normal ones: what those notice of it."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shoal.load.connection import Connection
from tests.e2e.process import ROOT, SCRIPTED, Server
from tests.e2e.test_clients import BODY, HEAD, address, drip
from tests.faults.traffic import answer, post
from tests.service.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.faults]
SLOW = 1000
REQUESTS = 600
CLIENTS = 16
ROUNDS = 3
SPREAD = 6.0
"""Seconds over which they come, as clients do that know nothing of each other."""
RATE = 100.0


@contextmanager
def slow_clients(server: Server) -> Iterator[None]:
    """A thousand, in a process of their own, so that they take no time from the one that measures;
    who is cut off comes again."""
    command = [sys.executable, "-m", "tests.faults.test_slow", server.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            yield
        finally:
            process.kill()


async def be_slow(url: str) -> None:
    class There:
        """What `drip` needs of a server."""

    there = There()
    there.url = url  # type: ignore[attr-defined]
    never = asyncio.Event()

    async def one(number: int) -> None:
        await asyncio.sleep(SPREAD * number / SLOW)
        while True:
            try:
                await drip(there, HEAD if number % 2 else BODY, never)  # type: ignore[arg-type]
            except OSError:
                await asyncio.sleep(1)

    clients = [asyncio.create_task(one(number)) for number in range(SLOW)]
    await asyncio.sleep(SPREAD + 1)
    print("there", flush=True)
    await asyncio.gather(*clients)


async def latencies(server: Server) -> list[float]:
    """Of requests at an even rate, each from the moment at which it was meant to be sent."""
    loop = asyncio.get_running_loop()
    request = post("/predict", "image/png", png(7))
    began = time.monotonic()

    async def client(number: int) -> list[float]:
        _, connection = await loop.create_connection(Connection, *address(server))
        took = []
        for turn in range(number, REQUESTS, CLIENTS):
            meant = began + turn / RATE
            await asyncio.sleep(max(0, meant - time.monotonic()))
            status, _ = await answer(connection, request)
            assert status == 200
            took.append(time.monotonic() - meant)
        connection.close()
        return took

    each = await asyncio.gather(*map(client, range(CLIENTS)))
    return [seconds for took in each for seconds in took]


async def test_normal_clients_do_not_notice() -> None:
    """The 99th percentile of what they wait at most doubles; by the median of three rounds, each
    measured without slow clients and then with them."""
    with Server(*SCRIPTED, ENGINE_SECONDS="0.005", SHOAL_LOG_LEVEL="info") as server:
        server.wait_until_ready()
        await latencies(server)
        ratios, seen = [], []
        for _ in range(ROUNDS):
            alone = statistics.quantiles(await latencies(server), n=100)[98]
            with slow_clients(server):
                beside = statistics.quantiles(await latencies(server), n=100)[98]
            ratios.append(beside / alone)
            seen.append((round(1000 * alone, 1), round(1000 * beside, 1)))
        print("p99 in ms, alone and beside a thousand slow clients:", seen)
        assert statistics.median(ratios) <= 2, seen
        assert server.stop() == 0


if __name__ == "__main__":
    asyncio.run(be_slow(sys.argv[1]))
