"""The client against real processes that are busy, or that come and go."""

from __future__ import annotations

import asyncio
import concurrent.futures

import httpx
import pytest

from shoal.client import AsyncClient, Client
from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
BUSY = {"ENGINE_SECONDS": "0.3", "SHOAL_MAX_QUEUE_SIZE": "4"}


async def test_client_retries_until_all_requests_are_answered() -> None:
    """With more requests than the queue holds, rejected ones are retried and all are answered."""
    with Server(*SCRIPTED, **BUSY) as server:
        server.wait_until_ready()
        async with AsyncClient(server.url) as client:
            answers = await asyncio.gather(*(client.predict(png(red % 10)) for red in range(40)))
        refused = [record for record in server.log() if record.get("code") == "queue_full"]
    classes = [answer.class_ for answer in answers]
    assert classes[:10] == classes[10:20] and len(set(classes)) == 10
    assert refused


def test_client_may_be_shared_by_threads() -> None:
    """Each thread gets the answer to its own image."""
    with Server(*SCRIPTED, **BUSY) as server:
        server.wait_until_ready()
        with Client(server.url) as client, concurrent.futures.ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(client.predict, [png(red % 10) for red in range(16)]))
            alone = [client.predict(png(red)) for red in range(4)]
    assert [a.class_ for a in answers[:4]] == [a.class_ for a in alone]
    assert [a.class_ for a in answers[10:]] == [a.class_ for a in answers[:6]]


def test_client_survives_a_restart_of_the_server() -> None:
    """Connections to the old server do not prevent requests to the new one."""
    with Server(*SCRIPTED) as old:
        old.wait_until_ready()
        with Client(old.url) as client:
            assert client.predict(png(7)).class_ == "horse"
            assert old.stop() == 0
            with Server(*SCRIPTED, SHOAL_PORT=str(httpx.URL(old.url).port)):
                assert client.predict(png(7)).class_ == "horse"
