"""The least that a FastAPI service around this network can be, for a bound on what ours can.

It reads the body, has our engine compute as many as wait, and answers what it always answers.
Nothing is parsed, decoded, foreseen, counted or logged, and nobody has a deadline.

python -m benchmarks.baselines.fastapi_least
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from model_store.engine import GluonEngine
from service.app import load_engine
from service.settings import load_settings

ANSWER = b'{"class":"horse","probability":0.91}'
MOST = 16
IN_FLIGHT = 2
IMAGE = np.zeros((32, 32, 3), np.uint8)

waiting: list[asyncio.Future[None]] = []
somebody = asyncio.Event()


async def compute(engine: GluonEngine) -> None:
    while True:
        while not waiting:
            somebody.clear()
            await somebody.wait()
        batch = waiting[:MOST]
        del waiting[:MOST]
        await engine.infer([IMAGE] * len(batch))
        for answer in batch:
            answer.set_result(None)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with load_engine(load_settings()) as engine:
        runners = [asyncio.create_task(compute(engine)) for _ in range(IN_FLIGHT)]
        yield
        for runner in runners:
            runner.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> Response:
    await request.body()
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting.append(answer)
    somebody.set()
    await answer
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
