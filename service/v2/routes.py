"""The Open Inference Protocol v2 over REST, as KServe, Triton's clients and others speak it.

`protocol` has the shapes of its bodies, `tensors` and `outputs` what they mean for this model, and
`open_inference` what is the same over gRPC. Errors are those of `errors`, in the protocol's shape.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image
from service import errors
from service.api.predict import begun
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType
from service.http import problems, request_headers
from service.http.disconnect import cancel_on_disconnect
from service.http.fast_path import FastRoute
from service.inference.pipeline import Pipeline
from service.inference.serving import LoadedModel, Serving
from service.settings import Settings
from service.upload.body import read_bytes
from service.v2 import common, schemas
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.inputs import header_length, parse
from service.v2.outputs import Reply, serialize
from service.v2.schemas import LENGTH_HEADER

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=FastRoute)


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
    errors.UnknownHost,
    errors.CrossSite,
    errors.Unauthorized,
    errors.RateLimited,
    errors.DecodersKilled,
    errors.DecodeQueueFull,
    errors.DecoderLost,
    errors.DecodersDown,
    errors.MissingImage,
    errors.BadInference,
    BadImage,
    errors.BadTimeout,
    errors.UnknownModel,
    errors.UploadTimeout,
    errors.BodyTooLarge,
    errors.TooManyImages,
    ImageTooLarge,
    ImageTooExpensive,
    UnsupportedImageType,
    errors.UnsupportedEncoding,
    EngineFailed,
    EngineDead,
    errors.NotReady,
    QueueFull,
    errors.DecodeQueueFull,
    errors.DecoderLost,
    errors.DecodersDown,
    DeadlineUnreachable,
    Draining,
    TimeoutError,
)


@router.get(
    "",
    summary="The server",
    response_model=schemas.ServerMetadata,
    responses=problems.documented([errors.UnknownHost], "/v2"),
)
@router.get("/", include_in_schema=False)
async def server_metadata(request: Request) -> Response:
    """Its name, its version, and the extensions of the protocol that it knows."""
    repository = request.app.state.admin_keys.wanted
    return JSONResponse(common.server_metadata(request.app.version, repository))


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_model=schemas.ServerLive,
    responses=problems.documented([errors.NotLive], "/v2"),
)
async def live(request: Request) -> Response:
    """As `/healthz`."""
    serving: Serving = request.app.state.serving
    if not await serving.live():
        raise errors.NotLive
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    summary="Can it answer requests?",
    response_model=schemas.ServerReady,
    responses=problems.documented(
        [errors.NotReady, errors.Stalled, errors.DecodersDown, Draining], "/v2"
    ),
)
async def ready(request: Request) -> Response:
    """As `/readyz`."""
    await _available(request)
    return JSONResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    """As `/readyz`, of the model and version that are served."""
    model = _served(request).model
    await _available(request)
    return JSONResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """Its inputs, of which a request has one, and its outputs."""
    return JSONResponse(common.model_metadata(_served(request).model))


async def infer(request: Request) -> Response:
    """The classes of n images, or an error if any of them cannot be answered.

    The input is `image`, BYTES [n], of JPEG, PNG, WebP, BMP or GIF, in base64 where it is in the
    JSON; or `pixels`, UINT8 [n, 32, 32, 3]; or `pixels`, FP32 [n, 3, 32, 32], normalised as in
    the model's training from 8-bit pixels. `parameters.timeout` is in microseconds.
    """
    journey = begun(request)
    _served(request)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise errors.UnsupportedEncoding
    reply, images = await _images(request, journey)
    with cancel_on_disconnect(request):
        answered = await by_one_version(journey, images)
    check_named(answered[0].model, *_named_model(request))
    rows = [one.probabilities for one in answered]
    body, length = serialize(reply, answered[0].model, rows)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, 200, {LENGTH_HEADER: str(length)}, "application/octet-stream")


for path, names in MODELS.items():
    router.add_api_route(
        path,
        model_metadata,
        summary="The model",
        response_model=schemas.ModelMetadata,
        openapi_extra={"parameters": names},
        responses=problems.documented(
            [errors.UnknownHost, errors.UnknownModel, errors.NotReady], "/v2"
        ),
    )
    router.add_api_route(
        f"{path}/ready",
        model_ready,
        summary="Can the model answer requests?",
        response_model=schemas.ModelReady,
        openapi_extra={"parameters": names},
        responses=problems.documented(
            [
                errors.UnknownHost,
                errors.UnknownModel,
                errors.NotReady,
                errors.Stalled,
                Draining,
            ],
            "/v2",
        ),
    )
    router.add_api_route(
        f"{path}/infer",
        infer,
        methods=["POST"],
        summary="Classify images",
        response_model=schemas.InferenceResponse,
        openapi_extra={
            "requestBody": schemas.REQUEST,
            "parameters": [
                *names,
                request_headers.TIMEOUT,
                {"name": LENGTH_HEADER, "in": "header"} | schemas.LENGTH,
            ],
        },
        responses={200: schemas.ANSWER, **problems.documented(REFUSALS, "/v2")},
    )


def _served(request: Request) -> LoadedModel:
    """Raises NotReady, or UnknownModel where the path names another model or version."""
    return served(request.app.state.serving, *_named_model(request))


def _named_model(request: Request) -> tuple[str, str | None]:
    """The path's model, and its version if it names one."""
    names = request.path_params
    return names["model"], names.get("version")


async def _available(request: Request) -> None:
    """Raises NotReady, Stalled or Draining."""
    serving: Serving = request.app.state.serving
    await serving.available()


async def _images(request: Request, journey: Pipeline) -> tuple[Reply, list[Image]]:
    """Read and decoded; the upload is forgotten before the images wait for the engine."""
    settings: Settings = request.app.state.settings
    header = header_length(request.headers.get(LENGTH_HEADER))
    with journey:
        call = parse(  # the body is in no variable, and is freed
            await journey.read(partial(read_bytes, request)),
            header,
            journey.model,
            settings.max_images_per_request,
        )
        if call.seconds is not None:
            journey.hurry(call.seconds)
        with cancel_on_disconnect(request):
            return call.reply, await decoded(journey, call)
