"""The Open Inference Protocol v2 over REST, as KServe, Triton's clients and others speak it.

`protocol` has the shapes of its bodies, `tensors` and `outputs` what they mean for this model;
an image goes the same way as one of `/predict` and is an item of its own in the batcher. Errors
are those of `errors`, in the protocol's shape. One model in one version is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image
from model_store.manifest import Manifest
from service import decode, errors, protocol, wishes
from service.departure import ends_with_client
from service.elements import Encoded
from service.journey import Journey, each
from service.outputs import Reply, serialise
from service.protocol import LENGTH_HEADER
from service.routes import Direct
from service.serving import Classified, Ready, Serving
from service.settings import Settings
from service.tensors import header_length, parse
from service.upload import read_bytes

EXTENSIONS = ["binary_tensor_data", "classification"]
PLATFORM = "mxnet_gluon"

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=Direct)


def _named(*names: str) -> list[dict[str, Any]]:
    """Parameters of a path, as OpenAPI describes them."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


MODELS = {
    "/models/{model}": _named("model"),
    "/models/{model}/versions/{version}": _named("model", "version"),
}
REFUSALS = (
    errors.Unauthorized,
    errors.RateLimited,
    errors.MissingImage,
    errors.BadInference,
    decode.BadImage,
    errors.BadTimeout,
    errors.UnknownModel,
    errors.UploadTimeout,
    errors.BodyTooLarge,
    errors.TooManyImages,
    decode.ImageTooLarge,
    decode.UnsupportedImageType,
    errors.UnsupportedEncoding,
    EngineFailed,
    EngineDead,
    errors.NotReady,
    QueueFull,
    DeadlineUnreachable,
    Draining,
    TimeoutError,
)


@router.get("", summary="The server", response_model=protocol.ServerMetadata)
@router.get("/", include_in_schema=False)
async def server_metadata(request: Request) -> Response:
    """Its name, its version, and the extensions of the protocol that it knows."""
    version = request.app.version
    extensions = [
        *EXTENSIONS,
        *(["model_repository"] if request.app.state.admin_keys.wanted else []),
    ]
    return JSONResponse({"name": "shoal", "version": version, "extensions": extensions})


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_model=protocol.ServerLive,
    responses=errors.documented([errors.NotLive], "/v2"),
)
async def live(request: Request) -> Response:
    """As `/healthz`."""
    serving: Serving = request.app.state.serving
    if not serving.live:
        raise errors.NotLive
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    summary="Can it answer requests?",
    response_model=protocol.ServerReady,
    responses=errors.documented([errors.NotReady, Draining], "/v2"),
)
async def ready(request: Request) -> Response:
    """As `/readyz`."""
    _available(request)
    return JSONResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    """As `/readyz`, of the model and version that are served."""
    model = _served(request).model
    _available(request)
    return JSONResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """Its inputs, of which a request has one, and its outputs."""
    model = _served(request).model
    return JSONResponse(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": PLATFORM,
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1]},
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]},
            ],
            "outputs": [
                {"name": "class", "datatype": "BYTES", "shape": [-1]},
                {"name": "probability", "datatype": "FP32", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(model.classes)]},
            ],
        }
    )


async def infer(request: Request) -> Response:
    """The classes of n images, or an error if any of them cannot be answered.

    The input is `image`, BYTES [n], of JPEG, PNG, WebP, BMP or GIF, in base64 where it is in the
    JSON; or `pixels`, UINT8 [n, 32, 32, 3]; or `pixels`, FP32 [n, 3, 32, 32], normalised as in
    the model's training from 8-bit pixels. `parameters.timeout` is in microseconds.
    """
    journey = Journey(request, wishes.timeout(request))
    _served(request)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise errors.UnsupportedEncoding
    reply, images = await _images(request, journey)
    with ends_with_client(request):
        answered = await _by_one_version(request, journey, images)
    rows = [one.probabilities for one in answered]
    body, length = serialise(reply, answered[0].model, rows)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, 200, {LENGTH_HEADER: str(length)}, "application/octet-stream")


for path, names in MODELS.items():
    router.add_api_route(
        path,
        model_metadata,
        summary="The model",
        response_model=protocol.ModelMetadata,
        openapi_extra={"parameters": names},
        responses=errors.documented([errors.UnknownModel, errors.NotReady], "/v2"),
    )
    router.add_api_route(
        f"{path}/ready",
        model_ready,
        summary="Can the model answer requests?",
        response_model=protocol.ModelReady,
        openapi_extra={"parameters": names},
        responses=errors.documented([errors.UnknownModel, errors.NotReady, Draining], "/v2"),
    )
    router.add_api_route(
        f"{path}/infer",
        infer,
        methods=["POST"],
        summary="Classify images",
        response_model=protocol.InferenceResponse,
        openapi_extra={
            "requestBody": protocol.REQUEST,
            "parameters": [
                *names,
                wishes.TIMEOUT,
                {"name": LENGTH_HEADER, "in": "header"} | protocol.LENGTH,
            ],
        },
        responses={200: protocol.ANSWER, **errors.documented(REFUSALS, "/v2")},
    )


def _served(request: Request) -> Ready:
    """Raises NotReady, or UnknownModel where the path names another model or version."""
    found: Ready = request.app.state.serving.ready
    _check_named(request, found.model)
    return found


def _check_named(request: Request, model: Manifest) -> None:
    """Raises UnknownModel where the path names another model or version."""
    names = request.path_params
    if (names["model"], names.get("version", model.version)) != (model.name, model.version):
        raise errors.UnknownModel(
            f"This server has the model {model.name!r} in version {model.version!r} and no other."
        )


async def _by_one_version(
    request: Request, journey: Journey, images: Sequence[Image]
) -> list[Classified]:
    """An answer names one version. Where another took over between two images, those that the old
    one computed are computed again: versions may differ in their classes.

    Raises UnknownModel where the path names the old one, and what `Journey.infer` raises.
    """
    serving: Serving = request.app.state.serving
    answered = await each(journey.infer, images)
    while any(one.model != answered[0].model for one in answered):
        model = serving.ready.model
        old = [place for place, one in enumerate(answered) if one.model != model]
        again = await each(journey.infer, [images[place] for place in old])
        for place, one in zip(old, again, strict=True):
            answered[place] = one
    _check_named(request, answered[0].model)
    return answered


def _available(request: Request) -> Ready:
    """Raises NotReady or Draining."""
    serving: Serving = request.app.state.serving
    return serving.available


async def _images(request: Request, journey: Journey) -> tuple[Reply, list[Image]]:
    """Read and decoded; the upload is forgotten before the images wait for the engine."""
    settings: Settings = request.app.state.settings
    header = header_length(request.headers.get(LENGTH_HEADER))
    with journey.reading() as read:
        body = await read(read_bytes)
        call = parse(body, header, journey.model, settings.max_images_per_request)
        if call.seconds is not None:
            journey.hurry(call.seconds)
        with ends_with_client(request):
            uploads = [await _joined(encoded) for encoded in call.encoded]
            decoded = await each(journey.decode, uploads, pause=True)
    return call.reply, [*call.pixels, *decoded]


async def _joined(pieces: Encoded) -> bytes:
    """Others have a turn after each piece."""
    found = []
    for piece in pieces:
        found.append(piece)
        await asyncio.sleep(0)
    return b"".join(found)
