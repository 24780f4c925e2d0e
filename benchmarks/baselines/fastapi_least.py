"""Runs a minimal FastAPI service with Shoal's neural network and as few other features as possible.

A comparison with this service shows how much CPU time Shoal's other features take. The service uses
Shoal's HTTP server, engine and settings, and FastAPI's router. The service reads the body of each
request, runs the neural network on a blank image, and sends a fixed response. Waiting requests are
collected into batches of at most `MAX_BATCH` requests. The service does not decode the body, has no
deadlines, metrics or logs, and does not predict how long batches take.

python -m benchmarks.baselines.fastapi_least
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import Request, Response

from model_store.engine import LaneEngine
from service.__main__ import serve
from service.app import create_app, load_engine
from service.http.middleware import FastRoute
from service.settings import Settings, load_settings
from service.telemetry.logs import configure

ANSWER = b'{"class":"horse","probability":0.91}'
MAX_BATCH = 16
IN_FLIGHT = 3
IMAGE = np.zeros((32, 32, 3), np.uint8)

waiting: list[asyncio.Future[None]] = []
not_empty = asyncio.Event()


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[LaneEngine]:
    """Yields the engine. During the block, tasks run batches for the waiting requests."""
    async with load_engine(settings) as engine:
        runners = [asyncio.create_task(compute(engine)) for _ in range(IN_FLIGHT)]
        yield engine
        for runner in runners:
            runner.cancel()


async def compute(engine: LaneEngine) -> None:
    """Runs batches for the waiting requests until the task is canceled."""
    while True:
        while not waiting:
            not_empty.clear()
            await not_empty.wait()
        batch = waiting[:MAX_BATCH]
        del waiting[:MAX_BATCH]
        await engine.infer([IMAGE] * len(batch))
        for answer in batch:
            if not answer.done():  # the future is canceled if the client disconnected
                answer.set_result(None)


async def predict(request: Request) -> Response:
    """Waits until the batch of this request is done, and returns a fixed response."""
    await request.body()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.append(answer)
    not_empty.set()
    await answer
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    settings = load_settings()
    configure(settings)
    app = create_app(settings, load)
    app.router.routes.insert(0, FastRoute("/predict", predict, methods=["POST"]))
    app.build_middleware_stack = lambda: app.router  # type: ignore[method-assign]
    sys.exit(serve(app, settings))
