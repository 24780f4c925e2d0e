"""Everything hostile at once, and what it does to the memory and to the event loop."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter

import httpx
import pytest

from tests.e2e.process import SCRIPTED, Server
from tests.faults.faulty import FAULTY
from tests.faults.process import resident
from tests.faults.wire import exchange
from tests.service import synthetic

pytestmark = [pytest.mark.slow, pytest.mark.faults]

SECONDS = 20
CLIENTS = 24
MEGABYTE = 2**20
PIXELS, UPLOADS, ONE = 8_000_000, 64 * MEGABYTE, 8 * MEGABYTE
BOUND = (UPLOADS + CLIENTS * 130 * 1024) / MEGABYTE
"""MB that the server's process may take beyond what it has at rest: docs/reliability.md. Decoders
are other processes."""
SLACK = 48
"""MB that allocators keep."""
LONGEST = 0.05
LIMITS = {
    "SHOAL_MAX_UPLOAD_BYTES": str(ONE),
    "SHOAL_MAX_UPLOAD_MEMORY": str(UPLOADS),
    "SHOAL_MAX_IMAGE_PIXELS": str(PIXELS),
}


def post(kind: bytes, body: bytes) -> bytes:
    return (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (kind, len(body), body)
    )


def hostile() -> list[bytes]:
    form = b"multipart/form-data; boundary=b"
    others = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n' * 50_000
    big = synthetic.encode(synthetic.flat("RGB", 7, side=2800), "PNG")
    return [
        *(post(b"image/png", bomb) for bomb in synthetic.bombs().values()),
        post(b"image/png", big),
        post(b"image/png", bytes(ONE)),
        post(b"image/jpeg", b"\xff\xd8" + b"\xff" * (ONE - 2)),
        post(form, others),
        post(form, b"--b\r\nX: " + b"y" * (ONE - 8)),
        post(form, b"\r\n--" * (ONE // 4)),
        post(form, b'--b\r\nContent-Disposition: form-data; name="img"\r\n\r\n' + bytes(ONE - 100)),
    ]


async def probe(url: str, until: float) -> list[float]:
    """Seconds that each answer of /healthz took."""
    took = []
    async with httpx.AsyncClient(timeout=30) as client:
        while time.monotonic() < until:
            began = time.perf_counter()
            assert (await client.get(f"{url}/healthz")).status_code == 200
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
    return took


async def test_mixed_attack_is_bounded() -> None:
    """24 hostile clients for 20 s: memory is bounded, the loop is never held, and a prober is
    answered."""
    with Server(*FAULTY, **LIMITS, SHOAL_DECODE_PROCESSES="2") as server:
        server.wait_until_ready()
        requests = itertools.cycle(hostile())
        rest, most = resident(server.pid), 0.0
        end = time.monotonic() + SECONDS
        told: set[str] = set()

        async def attack() -> None:
            nonlocal most
            while time.monotonic() < end:
                told.update(await exchange(server, next(requests)))
                most = max(most, resident(server.pid))

        async with asyncio.TaskGroup() as group:
            probing = group.create_task(probe(server.url, end))
            for _ in range(CLIENTS):
                group.create_task(attack())
        assert server.stop() == 0
        held = server.log_of("the loop")["held"]
        problems = [r for r in server.log() if r["level"] in ("error", "critical")]
    took = probing.result()
    print(
        f"memory {rest:.0f} MB, at most {most:.0f}; loop held for {1000 * held:.0f} ms; "
        f"{len(took)} probes, median {1000 * statistics.median(took):.1f} ms, "
        f"slowest {1000 * max(took):.0f} ms"
    )
    assert problems == []
    assert "413 image_too_large" in told
    assert {one.split()[0] for one in told} <= {"200", "400", "413", "415", "422", "503", "504"}
    assert most - rest < BOUND + SLACK, f"{rest:.0f} MB became {most:.0f}"
    assert held < LONGEST, f"the loop was held for {1000 * held:.0f} ms"
    assert len(took) > SECONDS


async def most_memory(server: Server, requests: list[bytes]) -> tuple[float, list[str]]:
    """MB more than at rest while all of them are sent at once, and what is told."""
    rest, most = resident(server.pid), 0.0
    told = asyncio.gather(*(exchange(server, request) for request in requests))
    while not told.done():
        most = max(most, resident(server.pid))
        await asyncio.sleep(0.005)
    return most - rest, [one for each in await told for one in each]


async def test_incomplete_uploads_share_upload_memory() -> None:
    """24 incomplete uploads share the memory for uploads; further ones are rejected."""
    with Server(*FAULTY, **LIMITS, SHOAL_UPLOAD_TIMEOUT="5") as server:
        server.wait_until_ready()
        unfinished = post(b"image/png", bytes(ONE))[:-1]
        most, told = await most_memory(server, [unfinished] * CLIENTS)
        assert server.stop() == 0
    print(f"{most:.0f} MB, {Counter(told)}")
    assert {*told} == {"503 upload_memory_full", "408 upload_timeout"}
    assert most < BOUND + SLACK


async def test_large_images_take_no_memory_of_the_server() -> None:
    """16 images near the pixel limit are decoded in other processes."""
    patient = {"SHOAL_DECODE_PROCESSES": "16", "SHOAL_REQUEST_TIMEOUT": "60"}
    with Server(*SCRIPTED, **LIMITS, **patient) as server:
        server.wait_until_ready()
        largest = synthetic.encode(synthetic.flat("RGBA", 7, side=2800), "PNG")
        most, told = await most_memory(server, [post(b"image/png", largest)] * 16)
        assert server.stop() == 0
    print(f"{most:.0f} MB, {Counter(told)}")
    assert told == ["200"] * 16
    assert most < SLACK
