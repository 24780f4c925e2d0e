"""Defines a BentoML service: two workers, each with a neural network and an adaptive batcher.

bentoml serve benchmarks.rivals.bentoml_server:Classifier --port N
"""

# `from __future__ import annotations` is not used, because BentoML evaluates the annotations.
from typing import Any

import bentoml
from PIL import Image

from benchmarks.baselines.network import Network, resized


@bentoml.service(workers=2, traffic={"timeout": 60}, metrics={"enabled": False})
class Classifier:
    """The service. BentoML calls the method `predict`."""

    def __init__(self) -> None:
        self.network = Network(16)

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000)
    def predict(self, img: list[Image.Image]) -> list[dict[str, Any]]:
        """Classifies a batch of images."""
        return self.network.classify([resized(image) for image in img])
