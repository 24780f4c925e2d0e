"""Runs a LitServe server: uvicorn, and one worker that decodes images and runs batches.

python -m benchmarks.rivals.litserve_server
"""

# `from __future__ import annotations` is not used, because LitServe evaluates the annotations.
import os
from typing import Any

import litserve
from fastapi import Request

from benchmarks.baselines.network import Network, Pixels, decode


class Classifier(litserve.LitAPI):
    """The service. LitServe calls all methods."""

    def setup(self, device: str) -> None:
        self.network = Network(16)

    def decode_request(self, request: Request) -> Pixels:
        form: Any = request  # the parsed form; LitServe requires the annotation Request
        return decode(form["img"].file.read())

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        return inputs

    def predict(self, images: list[Pixels]) -> list[dict[str, Any]]:
        return self.network.classify(images)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=16, batch_timeout=0.002, api_path="/predict"), accelerator="cpu"
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        generate_client_file=False,
    )
