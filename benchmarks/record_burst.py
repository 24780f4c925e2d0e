"""When do 128 requests arrive that were sent together? Recorded at the batcher of a real service.

    python -m benchmarks.record_burst

128 clients, connected and idle, each send a small JPEG at the same moment over loopback. What is
written, `benchmarks/simulation/burst.json`, is the seconds from the first arrival at the batcher to
each; the simulator plays it back.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from pathlib import Path

import uvloop

from batching.arrivals import Arrivals
from service.app import create_app
from service.server.server import Server
from service.settings import Settings
from shoal.load import images
from tests.fakes import FakeEngine

FILE = Path(__file__).parent / "simulation" / "burst.json"
TOGETHER = 128
PORT = 8765


async def client(request: bytes, connected: asyncio.Barrier) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    await connected.wait()
    writer.write(request)
    await reader.readuntil(b"}}")
    writer.close()


async def record() -> list[float]:
    """Seconds from the first arrival, in order."""
    moments: list[float] = []
    original = Arrivals.record

    def noted(self: Arrivals, now: float) -> None:
        moments.append(now)
        original(self, now)

    Arrivals.record = noted  # type: ignore[method-assign]  # the only one who knows the moment
    settings = Settings(port=PORT, log_level="error", request_timeout=60)
    server = Server(create_app(settings, FakeEngine().load), settings)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # as uvicorn itself waits
        await asyncio.sleep(0.05)
    url = urllib.parse.urlsplit(f"http://127.0.0.1:{PORT}/predict")
    pictures = images.made_up(32)
    for _ in range(3):  # the last one counts: by then everything is warm
        moments.clear()
        connected = asyncio.Barrier(TOGETHER)
        requests = [images.request(url, pictures[n % 64], raw=True) for n in range(TOGETHER)]
        await asyncio.gather(*(client(request, connected) for request in requests))
        await asyncio.sleep(0.2)
    server.should_exit = True
    await serving
    return [moment - moments[0] for moment in moments]


def main() -> None:
    began = time.perf_counter()
    offsets = uvloop.run(record())
    FILE.write_text(json.dumps([round(offset, 6) for offset in offsets]) + "\n")
    spread = 1e3 * offsets[-1]
    print(f"{len(offsets)} arrivals within {spread:.1f} ms, in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
