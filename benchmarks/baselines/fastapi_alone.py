"""FastAPI as in tutorials, without batching: two processes, each with its own network.

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
    """The answer."""

    class_: str = Field(alias="class")
    probability: float


if __name__ == "benchmarks.baselines.fastapi_alone":  # in uvicorn's workers
    network = Network()


@app.post("/predict")
async def predict(img: Annotated[UploadFile, "an image"]) -> Prediction:
    """Classifies an image."""
    # On the event loop: MXNet must stay on one thread, and another thread would only add cost.
    return Prediction.model_validate(network.classify([decode(await img.read())])[0])


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.baselines.fastapi_alone:app",
        port=int(os.environ["PORT"]),
        workers=2,
        timeout_worker_healthcheck=60,  # loading takes longer than the default
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
