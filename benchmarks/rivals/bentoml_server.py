"""BentoML: two workers, each with a network and an adaptive batcher of its own.

bentoml serve benchmarks.rivals.bentoml_server:Pictures --port N
"""

# No `from __future__ import annotations`: BentoML reads the annotations themselves.
from typing import Any

import bentoml
from PIL import Image

from benchmarks.baselines.network import Network, shrunk


@bentoml.service(workers=2, traffic={"timeout": 60}, metrics={"enabled": False})
class Pictures:
    def __init__(self) -> None:
        self.network = Network(16)

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000)
    def predict(self, img: list[Image.Image]) -> list[dict[str, Any]]:
        return self.network.classify([shrunk(image) for image in img])
