"""Faults of the engine in a real process, beside requests that nothing is wrong with."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.process import PATIENCE, Server
from tests.faults.faulty import FAULTY, Fault, picture

pytestmark = pytest.mark.slow
FAILED = "engine_failed"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*FAULTY, ENGINE_SECONDS="0.02") as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


async def ask(client: httpx.AsyncClient, url: str, fault: Fault, red: int) -> str:
    """The class, or the code of what went wrong; `cut` where nothing came back."""
    headers = {"content-type": "image/bmp"}
    try:
        response = await client.post(f"{url}/predict", content=picture(fault, red), headers=headers)
    except httpx.TransportError:
        return "cut"
    assert "innards" not in response.text
    answer = response.json()
    return str(answer["class"] if response.status_code == 200 else answer["code"])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault.RAISES, {FAILED: 4}),
        (Fault.NOT_A_NUMBER, {FAILED: 4}),
        (Fault.TOO_FEW, {FAILED: 4}),
        (Fault.OUT_OF_MEMORY, {"dog": 4}),
    ],
)
async def test_failing_images_fail_alone(
    server: Server, fault: Fault, told: dict[str, int]
) -> None:
    """4 of 40 requests make the engine fail and get errors; the other 36 get their class."""
    async with httpx.AsyncClient(timeout=30) as client:
        culprits = [ask(client, server.url, fault, 5) for _ in range(4)]
        others = [ask(client, server.url, Fault.NONE, 7) for _ in range(36)]
        answers = await asyncio.gather(*culprits, *others)
        assert Counter(answers[:4]) == told
        assert Counter(answers[4:]) == {"horse": 36}
        assert (await client.get(f"{server.url}/healthz")).status_code == 200


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@pytest.mark.faults
async def test_killed_server_can_start_again() -> None:
    """After kill -9 during requests, the next process starts at once and finds nothing left
    over."""
    with tempfile.TemporaryDirectory() as temporary:
        port = free_port()
        environment = {"SHOAL_PORT": port, "TMPDIR": temporary, "ENGINE_SECONDS": "0.2"}
        for _ in range(3):
            with Server(*FAULTY, **environment) as server:
                server.wait_until_ready()
                async with httpx.AsyncClient(timeout=30) as client:
                    tasks = [
                        asyncio.create_task(ask(client, server.url, Fault.NONE, 7))
                        for _ in range(8)
                    ]
                    await server.wait_until("shoal_batches_in_flight", 1)
                    server.send(signal.SIGKILL)
                    assert await asyncio.to_thread(server.wait) == -signal.SIGKILL
                    assert {*await asyncio.gather(*tasks)} <= {"cut", "horse"}
        assert os.listdir(temporary) == []


@pytest.mark.faults
async def test_engine_that_kills_the_process_ends_all_connections() -> None:
    """Every connection ends immediately."""
    with Server(*FAULTY, ENGINE_SECONDS="0.1") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            began = time.monotonic()
            asks = [ask(client, server.url, Fault.DIES, 7) for _ in range(8)]
            assert {*await asyncio.gather(*asks)} == {"cut"}
            assert time.monotonic() - began < PATIENCE / 2
        assert await asyncio.to_thread(server.wait) == -signal.SIGKILL


@pytest.mark.faults
async def test_hanging_engine_ends_the_process() -> None:
    """All requests are answered, the status is 4, and the next process serves."""
    port = free_port()
    environment = {"SHOAL_PORT": port, "ENGINE_DEAD_AFTER": "1", "SHOAL_REQUEST_TIMEOUT": "30"}
    with Server(*FAULTY, **environment) as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            asks = [ask(client, server.url, Fault.HANGS, 7) for _ in range(4)]
            asks += [ask(client, server.url, Fault.NONE, 7) for _ in range(12)]
            told = Counter(await asyncio.gather(*asks))
        assert await asyncio.to_thread(server.wait) == 4
    assert {*told} <= {"engine_dead", "deadline_unreachable", "horse"} and told["engine_dead"]
    with Server(*FAULTY, **environment) as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:
            assert await ask(client, server.url, Fault.NONE, 7) == "horse"
        assert server.stop() == 0
