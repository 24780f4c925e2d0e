"""Signals at many moments of a process' life: whenever they come, nothing is lost and no
traceback is left. The moments are spread evenly over the span in question."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import httpx
import pytest

from tests.e2e.process import REAL, SCRIPTED, Server
from tests.service.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.faults]
HORSE = png(7)
MOMENTS = 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_start_up(number: int) -> None:
    """At each of many moments of the start, a signal ends the process with status 0."""
    with Server(*REAL) as server:
        span = server.wait_until_ready() - 0.3
        server.stop()
    for moment in range(MOMENTS):
        server = Server(*REAL).start()
        try:
            time.sleep(max(0, server.started + 0.3 + span * moment / MOMENTS - time.monotonic()))
            status = server.stop(number)
            assert (status, server.errors()) == (0, ""), f"after {moment}/{MOMENTS} of {span:.1f} s"
            assert [record for record in server.log() if "traceback" in record] == []
        finally:
            server.end()


async def test_signals_during_a_drain() -> None:
    """At each of many moments of a drain, further signals change nothing: all are answered, status
    0."""
    for moment in range(MOMENTS):
        slow = {"ENGINE_SECONDS": "0.3", "SHOAL_DRAIN_DELAY": "0.3", "SHOAL_REQUEST_TIMEOUT": "60"}
        with Server(*SCRIPTED, **slow) as server:
            server.wait_until_ready()
            async with httpx.AsyncClient(timeout=30) as client:
                posts = [
                    asyncio.create_task(client.post(f"{server.url}/predict", files={"img": HORSE}))
                    for _ in range(16)
                ]
                await server.wait_until("shoal_batches_in_flight", 1)
                server.send(signal.SIGTERM)
                await asyncio.sleep(1.4 * moment / MOMENTS)
                with contextlib.suppress(ProcessLookupError):
                    server.send(signal.SIGTERM if moment % 2 else signal.SIGHUP)
                responses = await asyncio.gather(*posts, return_exceptions=True)
                if moment == MOMENTS - 1:
                    while server.running():
                        server.send(signal.SIGHUP)
                status = await asyncio.to_thread(server.wait)
            told = [r if isinstance(r, BaseException) else r.status_code for r in responses]
            assert told == [200] * 16, f"moment {moment}"
            assert (status, server.errors()) == (0, ""), f"moment {moment}"
