"""What the Open Inference Protocol v2 does in the same way over REST and over gRPC.

Metadata of the server and the model, the choice of the model, and the stages from the inputs of a
request to its classifications. Each image is an item of its own in the batcher, as with
`/predict`, but a request is answered as a whole or not at all. One version of one model is served
at a time.
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
REPOSITORY = "model_repository"
PLATFORM = "mxnet_gluon"


def server_metadata(version: str, repository: bool) -> dict[str, Any]:
    """Name and version of the server, and the extensions of the protocol that it supports.

    `repository`: whether the model repository extension is enabled.
    """
    extensions = [*EXTENSIONS, REPOSITORY] if repository else EXTENSIONS
    return {"name": "shoal", "version": version, "extensions": extensions}


def model_metadata(model: Manifest) -> dict[str, Any]:
    """The inputs of the model, of which a request has one, and its outputs."""
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
    """The model that serves, if it has this name and version. None or "": any version.

    Raises NotReady, UnknownModel.
    """
    loaded = service.loaded
    check_named(loaded.model, name, version)
    return loaded


def check_named(model: Manifest, name: str, version: str | None) -> None:
    """Raise UnknownModel unless `model` has this name and version. None or "": any version."""
    if (name, version or model.version) != (model.name, model.version):
        raise UnknownModel(
            f"This server serves version {model.version!r} of the model {model.name!r}, and no "
            "other model or version."
        )


async def decoded(pipeline: Pipeline, inputs: InferInputs) -> list[Image]:
    """The images of `inputs`. Raises what `Pipeline.decode` raises."""
    pipeline.count_images(len(inputs.encoded) + len(inputs.pixels))
    uploads = [await _joined(encoded) for encoded in inputs.encoded]
    return [*inputs.pixels, *await gather(pipeline.decode, uploads, pause=True)]


async def by_one_version(pipeline: Pipeline, images: Sequence[Image]) -> list[Classification]:
    """Classify all images by the same version of the model, which the answer names.

    If another version replaced the model meanwhile, the images that the old version computed are
    computed again. Raises what `Pipeline.infer` raises.
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
    """One file from its pieces. The event loop may run other tasks after each piece."""
    found = []
    for piece in pieces:
        found.append(piece)
        await asyncio.sleep(0)
    return b"".join(found)
