"""Clients that leave, over real connections: their work is not done."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Hold, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow


async def test_disconnected_clients_are_not_computed(hold: Hold) -> None:
    """Requests in the queue whose clients disconnect never reach the engine."""
    with Server(*SCRIPTED, ENGINE_HELD=str(hold), SHOAL_REQUEST_TIMEOUT="60") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:

            def post() -> asyncio.Task[httpx.Response]:
                form = {"img": png(7)}
                return asyncio.create_task(client.post(f"{server.url}/predict", files=form))

            first = post()
            await server.wait_until("shoal_batches_in_flight", 1)
            waiting = [post() for _ in range(24)]
            await server.wait_until("shoal_queue_length", 24)
            for task in waiting[4:]:
                task.cancel()
            await server.wait_until("shoal_queue_length", 4)
            hold.end()
            answers = await asyncio.gather(first, *waiting[:4])
        assert server.stop() == 0
        computed = sum(server.batches())
        left = [record for record in server.log() if record.get("code") == "client_left"]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert computed == 5
    assert [record["status"] for record in left] == [499] * 20
