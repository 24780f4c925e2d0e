"""The least of a FastAPI service around this network that we know how to build, to compare with.

Our own, with nearly all taken out: the same connections, engine and settings, and of FastAPI only
its router. It reads the body, has the engine compute as many as wait, and answers what it always
answers. Nothing is parsed, decoded, foreseen, counted or logged, and nobody has a deadline.

python -m benchmarks.baselines.fastapi_least
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import Request, Response

from model_store.engine import GluonEngine
from service.__main__ import serve
from service.app import create_app, load_engine
from service.http.fast_path import FastRoute
from service.settings import Settings, load_settings
from service.telemetry.logs import configure

ANSWER = b'{"class":"horse","probability":0.91}'
MOST = 16
IN_FLIGHT = 3
IMAGE = np.zeros((32, 32, 3), np.uint8)

waiting: list[asyncio.Future[None]] = []
somebody = asyncio.Event()


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[GluonEngine]:
    async with load_engine(settings) as engine:
        runners = [asyncio.create_task(compute(engine)) for _ in range(IN_FLIGHT)]
        yield engine
        for runner in runners:
            runner.cancel()


async def compute(engine: GluonEngine) -> None:
    while True:
        while not waiting:
            somebody.clear()
            await somebody.wait()
        batch = waiting[:MOST]
        del waiting[:MOST]
        await engine.infer([IMAGE] * len(batch))
        for answer in batch:
            if not answer.done():  # else its client has left
                answer.set_result(None)


async def predict(request: Request) -> Response:
    await request.body()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.append(answer)
    somebody.set()
    await answer
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    settings = load_settings()
    configure(settings)
    app = create_app(settings, load)
    app.router.routes.insert(0, FastRoute("/predict", predict, methods=["POST"]))
    app.build_middleware_stack = lambda: app.router  # type: ignore[method-assign]
    sys.exit(serve(app, settings))
