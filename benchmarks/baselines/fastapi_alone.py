"""FastAPI as it is usually written, without batching: two processes, each with its network.

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
    class_: str = Field(alias="class")
    probability: float


if __name__ == "benchmarks.baselines.fastapi_alone":  # in uvicorn's workers
    network = Network()


@app.post("/predict")
async def predict(img: Annotated[UploadFile, "an image"]) -> Prediction:
    # On the event loop: a thread would cost more than it gives, and MXNet wants to stay on one.
    return Prediction.model_validate(network.classify([decode(await img.read())])[0])


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.baselines.fastapi_alone:app",
        port=int(os.environ["PORT"]),
        workers=2,
        timeout_worker_healthcheck=60,  # loading takes longer than the default allows
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
