"""The Open Inference Protocol v2, whatever carries it: `inference` over REST, `rpc` over gRPC.

What the server and the model say of themselves, which model is meant, and the way from what a
request holds to images. Each image is an item of its own in the batcher, on the same way as one of
`/predict`; a request is answered whole or not at all. One model in one version is served at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from model_store.engine import SIDE, Image
from model_store.manifest import Manifest
from service.errors import UnknownModel
from service.inference.pipeline import Pipeline, each
from service.inference.serving import Classification, LoadedModel, Serving
from service.v2.inputs import InferInputs
from service.v2.tensor_data import Encoded

EXTENSIONS = ["binary_tensor_data", "classification"]
REPOSITORY = "model_repository"
PLATFORM = "mxnet_gluon"


def server_metadata(version: str, repository: bool) -> dict[str, Any]:
    """The server's name, its version, and the extensions of the protocol that it knows."""
    extensions = [*EXTENSIONS, REPOSITORY] if repository else EXTENSIONS
    return {"name": "shoal", "version": version, "extensions": extensions}


def model_metadata(model: Manifest) -> dict[str, Any]:
    """The model's inputs, of which a request has one, and its outputs."""
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


def served(serving: Serving, name: str, version: str | None) -> LoadedModel:
    """Who answers for model `name` in `version`; None: whichever is served.

    Raises NotReady, UnknownModel.
    """
    found = serving.ready
    check_named(found.model, name, version)
    return found


def check_named(model: Manifest, name: str, version: str | None) -> None:
    """Raises UnknownModel where `model` is not the one that is named."""
    if (name, version or model.version) != (model.name, model.version):
        raise UnknownModel(
            f"This server has the model {model.name!r} in version {model.version!r} and no other."
        )


async def decoded(journey: Pipeline, call: InferInputs) -> list[Image]:
    """The images that `call` holds. Raises what `Pipeline.decode` raises, and BadInference."""
    journey.count(len(call.encoded) + len(call.pixels))
    uploads = [await _joined(encoded) for encoded in call.encoded]
    return [*call.pixels, *await each(journey.decode, uploads, pause=True)]


async def by_one_version(journey: Pipeline, images: Sequence[Image]) -> list[Classification]:
    """An answer names one version. Where another took over between two images, those that the old
    one computed are computed again: versions may differ in their classes.

    Raises what `Pipeline.infer` raises.
    """
    answered = await each(journey.infer, images)
    while any(one.model != answered[0].model for one in answered):
        model = journey.serving.ready.model
        old = [place for place, one in enumerate(answered) if one.model != model]
        again = await each(journey.infer, [images[place] for place in old])
        for place, one in zip(old, again, strict=True):
            answered[place] = one
    return answered


async def _joined(pieces: Encoded) -> bytes:
    """Others have a turn after each piece."""
    found = []
    for piece in pieces:
        found.append(piece)
        await asyncio.sleep(0)
    return b"".join(found)
