"""Runs a FastAPI server as in tutorials, with a fixed response instead of a neural network.

python -m benchmarks.plain_fastapi
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from pydantic import BaseModel

from model_store.training.cifar10 import CLASSES

app = FastAPI()


class Prediction(BaseModel):
    """A response with as many fields as Shoal's response."""

    label: str
    probability: float
    message: str
    probabilities: dict[str, float]


@app.api_route("/nothing", methods=["GET", "POST"])
async def nothing() -> dict[str, str]:
    """Returns a fixed response."""
    return {"status": "ok"}


@app.post("/predict")
async def predict(img: Annotated[UploadFile, "an image"]) -> Prediction:
    """Decodes the image and returns a fixed class."""
    image = Image.open(io.BytesIO(await img.read())).convert("RGB").resize((32, 32))
    pixels = np.asarray(image, dtype=np.float32) / 255
    row = np.full(len(CLASSES), 0.01 + 0 * pixels[0, 0, 0])
    row[7] = 0.91
    return Prediction(
        label=CLASSES[7],
        probability=float(row[7]),
        message=f"The input picture is classified as [horse], with probability {row[7]:.3f}.",
        probabilities=dict(zip(CLASSES, row.tolist(), strict=True)),
    )


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
    uvicorn.run(
        app,
        port=int(os.environ.get("SHOAL_PORT", "0")),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
    )
