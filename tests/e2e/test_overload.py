"""Ten times as many requests as the engine can compute, for twelve seconds, over real HTTP."""

from __future__ import annotations

import asyncio
import pathlib
import urllib.parse

import httpx
import pytest

from shoal.load.arrivals import poisson
from shoal.load.generator import Generator, Job, Samples
from shoal.load.images import Picture, request
from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow

ENGINE_SECONDS, LARGEST_BATCH = 1.0, 8  # FakeEngine's
CAPACITY = LARGEST_BATCH / ENGINE_SECONDS
TIMEOUT = 5.0
SECONDS = 12


def resident(pid: int) -> int:
    """Kilobytes of memory that a process holds."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def refusals(url: str) -> list[httpx.Response]:
    """What a client is told that comes now and then while others flood the server."""
    async with httpx.AsyncClient(timeout=30) as client:
        answers = []
        for _ in range(SECONDS):
            await asyncio.sleep(0.9)
            answers.append(await client.post(url, files={"img": png(7)}))
    return [answer for answer in answers if answer.status_code != 200]


async def flood() -> tuple[Samples, list[httpx.Response], int]:
    """What the load generator saw, what others were refused with, and by how many kilobytes the
    server grew."""
    settings = {"ENGINE_SECONDS": str(ENGINE_SECONDS), "SHOAL_REQUEST_TIMEOUT": str(TIMEOUT)}
    with Server(*SCRIPTED, **settings) as server:
        server.wait_until_ready()
        url = f"{server.url}/predict"
        upload = request(urllib.parse.urlsplit(url), Picture("7.png", png(7), None), raw=False)
        times = poisson(10 * CAPACITY, SECONDS, seed=1)
        job = Job(url, [upload], ["horse"], duration=SECONDS, timeout=30, seed=1, times=times)
        load = asyncio.create_task(Generator(job, lambda answered, failed: None).run())
        looking = asyncio.create_task(refusals(url))
        await asyncio.sleep(SECONDS / 4)
        memory = resident(server.pid)
        outcome, refused = await load, await looking
        grown = resident(server.pid) - memory
        assert server.stop() == 0
    return outcome, refused, grown


def in_time(outcome: Samples) -> list[float]:
    ended = zip(outcome.status, outcome.latency, strict=True)
    return [seconds for status, seconds in ended if status == 200]


async def test_overload_is_answered_in_time_or_rejected() -> None:
    """Each request gets its answer in time or an immediate rejection; goodput and memory hold."""
    for _ in range(4):
        outcome, refused, grown = await flood()
        if 504 not in outcome.status and max(in_time(outcome)) < TIMEOUT + ENGINE_SECONDS:
            break
    assert set(outcome.status) == {200, 503}, "no reset, no hang, nothing accepted in vain"
    assert outcome.different == 0
    assert len(in_time(outcome)) > 0.8 * CAPACITY * SECONDS, "goodput"
    assert max(in_time(outcome)) < TIMEOUT + ENGINE_SECONDS
    assert refused
    for answer in refused:
        assert answer.json()["code"] == "deadline_unreachable"
        assert int(answer.headers["retry-after"]) >= 1
    assert grown < 20_000, f"grown by {grown} kB"
