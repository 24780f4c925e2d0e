"""Serves the Open Inference Protocol v2 over REST.

Clients of KServe and Triton use this protocol. `schemas` describes the bodies. `inputs` reads the
images of a request, and `outputs` builds the response. `common` has the parts that REST and gRPC
share. Errors have the format of the protocol.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from batching import Draining
from model_store.engine import Image
from service import errors
from service.api.predict import IMAGE_ERRORS, UPLOAD_ERRORS
from service.http import problems
from service.http.context import TIMEOUT, context_of
from service.http.middleware import FastRoute
from service.inference.pipeline import Pipeline, begin, service_of
from service.inference.service import LoadedModel
from service.upload.body import read_bytes
from service.v2 import common, schemas
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.inputs import header_length, parse
from service.v2.outputs import Reply, serialize
from service.v2.schemas import LENGTH_HEADER

router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=FastRoute)


def _named(*names: str) -> list[dict[str, Any]]:
    """Return the descriptions of path parameters for OpenAPI."""
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


MODELS = {
    "/models/{model}": _named("model"),
    "/models/{model}/versions/{version}": _named("model", "version"),
}
INFER_ERRORS = (
    *UPLOAD_ERRORS,
    *IMAGE_ERRORS,
    errors.TooManyImages,
    errors.BadInference,
    errors.UnknownModel,
    errors.UnsupportedEncoding,
)


@router.get(
    "",
    summary="Get server metadata",
    response_model=schemas.ServerMetadata,
    responses=problems.documented([errors.UnknownHost], "/v2"),
)
@router.get("/", include_in_schema=False)
async def server_metadata(request: Request) -> Response:
    """Return the name and version of the server, and the supported extensions of the protocol."""
    repository = service_of(request).admin_keys.required
    return JSONResponse(common.server_metadata(request.app.version, repository))


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_model=schemas.ServerLive,
    responses=problems.documented([errors.NotLive], "/v2"),
)
async def live(request: Request) -> Response:
    """Liveness probe with the same statuses as `/healthz`."""
    if not await service_of(request).is_live():
        raise errors.NotLive
    return JSONResponse({"live": True})


@router.get(
    "/health/ready",
    summary="Can the server classify images?",
    response_model=schemas.ServerReady,
    responses=problems.documented(
        [errors.NotReady, errors.Stalled, errors.DecodersDown, Draining], "/v2"
    ),
)
async def ready(request: Request) -> Response:
    """Readiness probe with the same statuses as `/readyz`."""
    await service_of(request).check_ready()
    return JSONResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    """Readiness probe of a model. Returns 404 if another model or version is loaded."""
    model = _served(request).model
    await service_of(request).check_ready()
    return JSONResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """Return the inputs and outputs of the model. A request has exactly one of the inputs."""
    return JSONResponse(common.model_metadata(_served(request).model))


async def infer(request: Request) -> Response:
    """Classify n images. If one image cannot be classified, the whole request fails.

    The request has one of these inputs:
    - `image`, BYTES [n]: JPEG, PNG, WebP, BMP or GIF files. In JSON, each file is a base64 string.
    - `pixels`, UINT8 [n, 32, 32, 3]: 8-bit pixels, height x width x RGB.
    - `pixels`, FP32 [n, 3, 32, 32]: 8-bit pixels after (pixel / 255 - mean) / std, with the mean
      and std of the model's training.

    `parameters.timeout` is the maximum time until the response, in microseconds.
    """
    pipeline = begin(request)
    _served(request)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise errors.UnsupportedEncoding
    reply, images = await _read_and_decode(request, pipeline)
    results = await by_one_version(pipeline, images)
    check_named(results[0].model, *_named_model(request))
    rows = [result.probabilities for result in results]
    body, length = serialize(reply, results[0].model, rows)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, 200, {LENGTH_HEADER: str(length)}, "application/octet-stream")


for path, names in MODELS.items():
    router.add_api_route(
        path,
        model_metadata,
        summary="Get model metadata",
        response_model=schemas.ModelMetadata,
        openapi_extra={"parameters": names},
        responses=problems.documented(
            [errors.UnknownHost, errors.UnknownModel, errors.NotReady], "/v2"
        ),
    )
    router.add_api_route(
        f"{path}/ready",
        model_ready,
        summary="Can the model classify images?",
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
                TIMEOUT,
                {"name": LENGTH_HEADER, "in": "header"} | schemas.LENGTH,
            ],
        },
        responses={200: schemas.ANSWER, **problems.documented(INFER_ERRORS, "/v2")},
    )


def _served(request: Request) -> LoadedModel:
    """Return the loaded model.

    Raises NotReady if no model is loaded, and UnknownModel if the path names another model or
    version.
    """
    return served(service_of(request), *_named_model(request))


def _named_model(request: Request) -> tuple[str, str | None]:
    """Return the model and the version in the path. The version is None if the path names no
    version."""
    names = request.path_params
    return names["model"], names.get("version")


async def _read_and_decode(request: Request, pipeline: Pipeline) -> tuple[Reply, list[Image]]:
    """Read the request and decode its images.

    Returns the parts of the response that the request determines, and the images. The memory of the
    upload is released before the images wait for the engine.
    """
    service = service_of(request)
    header = header_length(request.headers.get(LENGTH_HEADER))
    with service.uploads.lease() as lease:
        inputs = parse(  # no variable refers to the body, so its memory is freed after parsing
            await pipeline.read(read_bytes(request, lease)),
            header,
            pipeline.model,
            service.settings.max_images_per_request,
        )
        if inputs.seconds is not None:
            pipeline.shorten_deadline(inputs.seconds)
        context_of(request.scope).cancel_on_disconnect()
        return inputs.reply, await decoded(pipeline, inputs)
