"""The wall clock is set while the service works: by libfaketime, where it is installed."""

from __future__ import annotations

import asyncio
import os
import pathlib
import time

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.service.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.faults]
LIBRARIES = [
    path
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib")
    for path in pathlib.Path(folder).glob("**/faketime/libfaketimeMT.so.1")
]
DAY = 86_400


@pytest.mark.skipif(not LIBRARIES, reason="no libfaketime: apt-get install libfaketime")
async def test_clock_jumps_change_nothing(tmp_path: pathlib.Path) -> None:
    """While the wall clock jumps every 50 ms, requests are answered and durations stay right."""
    offset = tmp_path / "offset"
    offset.write_text("+0")
    fake = {
        "LD_PRELOAD": os.fspath(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": os.fspath(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with Server(*SCRIPTED, ENGINE_SECONDS="0.02", SHOAL_KEEP_ALIVE_TIMEOUT="2", **fake) as server:
        server.wait_until_ready()
        told: list[int] = []
        async with httpx.AsyncClient(timeout=10) as client:

            async def ask() -> None:
                while len(told) < 400:
                    form = {"img": png(7)}
                    told.append(
                        (await client.post(f"{server.url}/predict", files=form)).status_code
                    )

            asking = [asyncio.create_task(ask()) for _ in range(4)]
            jumps = [-365 * DAY, DAY, 0, -1, 10 * 365 * DAY]
            for turn in range(1000):
                if all(task.done() for task in asking):
                    break
                later = tmp_path / "later"
                later.write_text(f"{jumps[turn % len(jumps)]:+d}")
                later.rename(offset)
                await asyncio.sleep(0.05)
            await asyncio.gather(*asking)
            assert set(told) == {200} and turn > 5
            assert (await client.get(f"{server.url}/healthz")).status_code == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        days = {record["time"][:10] for record in server.log()}
        assert len(days) > 2, "the clock was to jump"
        assert all(record.get("seconds", 0) < 10 for record in server.log())
