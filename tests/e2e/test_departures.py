"""Clients that leave, over real connections: their work is not done."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow


async def test_who_leaves_is_not_computed() -> None:
    """Of many that wait behind a slow batch, those that hang up never reach the engine."""
    with Server(*SCRIPTED, ENGINE_SECONDS="0.8", SHOAL_REQUEST_TIMEOUT="20") as server:
        server.wait_until_ready()
        async with httpx.AsyncClient(timeout=30) as client:

            def post() -> asyncio.Task[httpx.Response]:
                form = {"img": png(7)}
                return asyncio.create_task(client.post(f"{server.url}/predict", files=form))

            first = post()
            await asyncio.sleep(0.3)  # it is being computed, alone
            waiting = [post() for _ in range(24)]
            await asyncio.sleep(0.3)  # all wait in the queue
            for task in waiting[4:]:
                task.cancel()
            answers = await asyncio.gather(first, *waiting[:4])
        assert server.stop() == 0
        computed = sum(record["size"] for record in server.log() if record["message"] == "batch")
        left = [record for record in server.log() if record.get("code") == "client_left"]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert computed == 5
    assert [record["status"] for record in left] == [499] * 20
