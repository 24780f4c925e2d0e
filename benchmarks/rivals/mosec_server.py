"""Runs a Mosec server: a front end in Rust, and two workers with a neural network each.

python benchmarks/rivals/mosec_server.py --port N

The workers decode images and run batches. Clients send the image as the request body, not in a
form.
"""

from __future__ import annotations

import json
from typing import Any

from mosec import Server, Worker

from benchmarks.baselines.network import Network, Pixels, decode


class Classifier(Worker):
    """A worker process. Mosec calls all methods."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network(16)

    def deserialize(self, data: bytes) -> Pixels:
        return decode(data)

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()

    def forward(self, data: list[Pixels]) -> list[dict[str, Any]]:
        return self.network.classify(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classifier, num=2, max_batch_size=16, max_wait_time=1, route="/predict")
    server.run()
