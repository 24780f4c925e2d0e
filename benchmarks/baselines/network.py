"""Loads and runs Shoal's default neural network, for the servers that Shoal is compared with.

The neural network is loaded once, compiled for each batch size, and run with one OpenMP thread.
This implementation is as fast as Shoal in fp32. So a comparison shows only the differences between
the servers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from model_store import manifest, versions
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet

MODEL = "cifar_resnet20_v1"
SIDE = 32

Pixels = npt.NDArray[np.uint8]
"""Pixels of an image: uint8 (32, 32, 3), RGB."""


def decode(data: bytes) -> Pixels:
    """Decodes and resizes an image with Pillow, as tutorials do."""
    return resized(Image.open(io.BytesIO(data)))


def resized(image: Image.Image) -> Pixels:
    """Resizes an image to the input size of the network, 32 x 32 pixels."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Network:
    """A loaded neural network, which must be created and called on the same thread."""

    def __init__(self, max_batch_size: int = 1) -> None:
        """Loads the latest version of the network in the default store.

        Args:
            max_batch_size: Maximum number of images in a batch. The network is compiled for each
                power of two up to this size.
        """
        self._mx = load_mxnet(threads=1)
        folder = versions.folder(manifest.STORE, MODEL, versions.latest(manifest.STORE, MODEL))
        self.model = versions.read_manifest(folder)
        self._mean = np.asarray(self.model.normalisation.mean, dtype=np.float32)
        self._std = np.asarray(self.model.normalisation.std, dtype=np.float32)
        self._by_size = {}
        size = 1
        while size <= max_batch_size:
            network = build(self.model.architecture, len(self.model.classes))
            network.load_parameters(str(folder / self.model.parameters.file))
            zeros = self._mx.nd.zeros((size, 3, SIDE, SIDE))
            network.optimize_for(zeros, backend="MKLDNN", static_alloc=True, static_shape=True)
            network(zeros).wait_to_read()
            self._by_size[size] = network
            size *= 2

    def classify(self, images: Sequence[Pixels]) -> list[dict[str, Any]]:
        """Returns the most probable class of each image and the probability of that class."""
        size = next(size for size in self._by_size if size >= len(images))
        inputs = np.zeros((size, SIDE, SIDE, 3), dtype=np.float32)
        np.divide(np.stack(images), 255, out=inputs[: len(images)])
        inputs = ((inputs - self._mean) / self._std).transpose(0, 3, 1, 2)
        logits = self._by_size[size](self._mx.nd.array(inputs)).asnumpy()[: len(images)]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        rows = exponentials / exponentials.sum(axis=1, keepdims=True)
        return [
            {"class": self.model.classes[int(row.argmax())], "probability": float(row.max())}
            for row in rows
        ]
