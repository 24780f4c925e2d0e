"""Implements the parts of the Open Inference Protocol v2 that REST and gRPC share.

These parts build the metadata of the server and the model, check the requested model, and decode
and classify the images of a request. The images of a request may be in different batches. If one
image fails, the whole request fails. One version of one model is loaded at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from model_store.engine import SIDE, Image
from model_store.manifest import Manifest
from service.errors import UnknownModel
from service.inference.gather import gather
from service.inference.pipeline import Pipeline
from service.inference.service import Classification, LoadedModel, Service
from service.v2.inputs import InferInputs
from service.v2.tensor_data import Encoded

EXTENSIONS = ["binary_tensor_data", "classification"]
"""Names of the protocol's extensions that are always supported."""
REPOSITORY = "model_repository"
"""Name of the extension that loads and unloads versions."""
PLATFORM = "mxnet_gluon"
"""Name of the framework that runs the model, for the metadata."""


def server_metadata(version: str, repository: bool) -> dict[str, Any]:
    """Return the name and version of the server, and the supported extensions of the protocol.

    Args:
        version: Version of the server.
        repository: Whether the model repository extension is enabled.
    """
    extensions = [*EXTENSIONS, REPOSITORY] if repository else EXTENSIONS
    return {"name": "shoal", "version": version, "extensions": extensions}


def model_metadata(model: Manifest) -> dict[str, Any]:
    """Return the name, the inputs and the outputs of the model.

    A request contains exactly one of the inputs.
    """
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": PLATFORM,
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]},
        ],
        "outputs": [
            {"name": "class", "datatype": "BYTES", "shape": [-1]},
            {"name": "probability", "datatype": "FP32", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(model.classes)]},
        ],
    }


def served(service: Service, name: str, version: str | None) -> LoadedModel:
    """Return the loaded model if it has the requested name and version.

    Args:
        service: The service.
        name: The requested model.
        version: The requested version. None or "": any version.

    Raises:
        NotReady: No model is loaded.
        UnknownModel: The loaded model has another name or version.
    """
    loaded = service.loaded
    check_named(loaded.model, name, version)
    return loaded


def check_named(model: Manifest, name: str, version: str | None) -> None:
    """Raise UnknownModel if `model` has another name or version.

    `version`: the requested version. None or "": any version.
    """
    if (name, version or model.version) != (model.name, model.version):
        raise UnknownModel(
            f"This server serves only version {model.version!r} of the model {model.name!r}."
        )


async def decoded(pipeline: Pipeline, inputs: InferInputs) -> list[Image]:
    """Decode the images of `inputs`. Raises the exceptions of `Pipeline.decode`."""
    pipeline.count_images(len(inputs.encoded) + len(inputs.pixels))
    uploads = [await _joined(encoded) for encoded in inputs.encoded]
    return [*inputs.pixels, *await gather(pipeline.decode, uploads, pause=True)]


async def by_one_version(pipeline: Pipeline, images: Sequence[Image]) -> list[Classification]:
    """Classify all images with the same version of the model.

    A response names one version. If another version is loaded during the request, the images that
    the old version classified are classified again by the new version. Raises the exceptions of
    `Pipeline.infer`.
    """
    results = await gather(pipeline.infer, images)
    while any(result.model != results[0].model for result in results):
        model = pipeline.current_model()
        old = [place for place, result in enumerate(results) if result.model != model]
        again = await gather(pipeline.infer, [images[place] for place in old])
        for place, result in zip(old, again, strict=True):
            results[place] = result
    return results


async def _joined(pieces: Encoded) -> bytes:
    """Join the pieces of a file. The event loop may run other tasks after each piece."""
    found = []
    for piece in pieces:
        found.append(piece)
        await asyncio.sleep(0)
    return b"".join(found)
