"""Records when 128 requests that are sent at the same time reach the batcher.

    python -m benchmarks.record_burst

128 clients connect to a real service over loopback. Then all clients send a small JPEG at the same
time. For each request, the seconds from the first arrival at the batcher to the arrival of this
request are written to benchmarks/simulation/burst.json. The simulation (`benchmarks.simulate`)
reads this file.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from pathlib import Path

import uvloop

from batching.policy import Arrivals
from service.app import create_app
from service.server.server import Server
from service.settings import Settings
from shoal.load import images
from shoal.load.connection import connect
from tests.fakes import FakeEngine

FILE = Path(__file__).parent / "simulation" / "burst.json"
CLIENTS = 128
PORT = 8765


async def client(request: bytes, connected: asyncio.Barrier) -> None:
    """Connects, waits until the other clients are connected, and sends one request."""
    connection = await connect("127.0.0.1", PORT)
    await connected.wait()
    await connection.request(request, 60.0)
    connection.close()


async def record() -> list[float]:
    """Returns the seconds from the first arrival to each arrival, in ascending order."""
    moments: list[float] = []
    original = Arrivals.record

    def recording(self: Arrivals, now: float) -> None:
        moments.append(now)
        original(self, now)

    Arrivals.record = recording  # type: ignore[method-assign]  # called for every arrival
    settings = Settings(port=PORT, log_level="error", request_timeout=60)
    server = Server(create_app(settings, FakeEngine().load), settings)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # uvicorn offers no event
        await asyncio.sleep(0.05)
    url = urllib.parse.urlsplit(f"http://127.0.0.1:{PORT}/predict")
    pictures = images.generate(32)
    for _ in range(3):  # the first two bursts warm up the service
        moments.clear()
        connected = asyncio.Barrier(CLIENTS)
        requests = [images.request(url, pictures[n % 64], raw=True) for n in range(CLIENTS)]
        await asyncio.gather(*(client(request, connected) for request in requests))
        await asyncio.sleep(0.2)
    server.should_exit = True
    await serving
    return [moment - moments[0] for moment in moments]


def main() -> None:
    """Records a burst and writes the file."""
    began = time.perf_counter()
    offsets = uvloop.run(record())
    FILE.write_text(json.dumps([round(offset, 6) for offset in offsets]) + "\n")
    spread = 1e3 * offsets[-1]
    print(f"{len(offsets)} arrivals within {spread:.1f} ms, in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
