"""Runs a FastAPI server as in tutorials: two processes with a neural network each, no batching.

python -m benchmarks.baselines.fastapi_alone
"""

from __future__ import annotations

import os
from typing import Annotated

import uvicorn
from fastapi import FastAPI, UploadFile
from pydantic import BaseModel, Field

from benchmarks.baselines.network import Network, decode

app = FastAPI()


class Prediction(BaseModel):
    """The response to a prediction request."""

    class_: str = Field(alias="class")
    probability: float


if __name__ == "benchmarks.baselines.fastapi_alone":  # this module was imported by a worker
    network = Network()


@app.post("/predict")
async def predict(img: Annotated[UploadFile, "an image"]) -> Prediction:
    """Classifies an image."""
    # The network runs on the event loop. MXNet must be called on one thread, and an additional
    # thread would only take more CPU time.
    return Prediction.model_validate(network.classify([decode(await img.read())])[0])


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.baselines.fastapi_alone:app",
        port=int(os.environ["PORT"]),
        workers=2,
        timeout_worker_healthcheck=60,  # loading takes longer than the default timeout
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
