"""Ten times as many requests as the engine can compute, for twenty seconds, over real HTTP."""

from __future__ import annotations

import asyncio
import pathlib
import time

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow

ENGINE_SECONDS, LARGEST_BATCH = 0.4, 8  # FakeEngine's
CAPACITY = LARGEST_BATCH / ENGINE_SECONDS
TIMEOUT = 2.0
SECONDS = 20


def resident(pid: int) -> int:
    """Kilobytes of memory that a process holds."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


async def test_ten_times_too_much() -> None:
    """Every request gets an answer in time or an immediate refusal; goodput and memory hold."""
    settings = {"ENGINE_SECONDS": str(ENGINE_SECONDS), "SHOAL_REQUEST_TIMEOUT": str(TIMEOUT)}
    with Server(*SCRIPTED, **settings) as server:
        server.wait_until_ready()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client:

            async def post() -> tuple[httpx.Response, float]:
                sent = time.monotonic()
                response = await client.post(f"{server.url}/predict", files={"img": png(7)})
                return response, time.monotonic() - sent

            tasks, memory = [], 0
            started = time.monotonic()
            for number in range(int(10 * CAPACITY * SECONDS)):
                await asyncio.sleep(started + number / (10 * CAPACITY) - time.monotonic())
                tasks.append(asyncio.create_task(post()))
                if number == int(10 * CAPACITY * SECONDS) // 4:
                    memory = resident(server.pid)
            answers = await asyncio.gather(*tasks)  # raises on a reset or a hang
            grown = resident(server.pid) - memory
        assert server.stop() == 0
    assert {response.status_code for response, _ in answers} == {200, 503}
    in_time = [seconds for response, seconds in answers if response.status_code == 200]
    assert len(in_time) > 0.8 * CAPACITY * SECONDS, "goodput"
    assert max(in_time) < TIMEOUT + ENGINE_SECONDS
    for response, _ in answers:
        if response.status_code == 503:
            assert response.json()["code"] in ("deadline_unreachable", "queue_full")
            assert int(response.headers["retry-after"]) >= 1
    assert grown < 20_000, f"grown by {grown} kB"
