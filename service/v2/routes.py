"""The Open Inference Protocol v2 over REST, as spoken by KServe and by Triton's clients.

`schemas` describes the bodies, `inputs` and `outputs` convert them to and from images and classes,
and `common` has what REST and gRPC share. Errors have the protocol's shape.
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
    """Parameters of a path, as OpenAPI describes them."""
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
    summary="The server",
    response_model=schemas.ServerMetadata,
    responses=problems.documented([errors.UnknownHost], "/v2"),
)
@router.get("/", include_in_schema=False)
async def server_metadata(request: Request) -> Response:
    """Name and version of the server, and the extensions of the protocol that it supports."""
    repository = service_of(request).admin_keys.required
    return JSONResponse(common.server_metadata(request.app.version, repository))


@router.get(
    "/health/live",
    summary="Is the process alive?",
    response_model=schemas.ServerLive,
    responses=problems.documented([errors.NotLive], "/v2"),
)
async def live(request: Request) -> Response:
    """Liveness probe, as `/healthz`."""
    if not await service_of(request).is_live():
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
    """Readiness probe, as `/readyz`."""
    await service_of(request).check_ready()
    return JSONResponse({"ready": True})


async def model_ready(request: Request) -> Response:
    """Readiness probe of this model and version."""
    model = _served(request).model
    await service_of(request).check_ready()
    return JSONResponse({"name": model.name, "ready": True})


async def model_metadata(request: Request) -> Response:
    """The inputs of the model, of which a request has one, and its outputs."""
    return JSONResponse(common.model_metadata(_served(request).model))


async def infer(request: Request) -> Response:
    """Classify n images. If one of them cannot be classified, the whole request fails.

    The input is one of: `image`, BYTES [n], with JPEG, PNG, WebP, BMP or GIF files, in base64 if
    they are in the JSON; `pixels`, UINT8 [n, 32, 32, 3]; `pixels`, FP32 [n, 3, 32, 32], normalized
    as in the training of the model from 8-bit pixels. `parameters.timeout` is in microseconds.
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
                TIMEOUT,
                {"name": LENGTH_HEADER, "in": "header"} | schemas.LENGTH,
            ],
        },
        responses={200: schemas.ANSWER, **problems.documented(INFER_ERRORS, "/v2")},
    )


def _served(request: Request) -> LoadedModel:
    """The model that serves. Raises NotReady, and UnknownModel if the path names another one."""
    return served(service_of(request), *_named_model(request))


def _named_model(request: Request) -> tuple[str, str | None]:
    """The model in the path, and its version if the path has one."""
    names = request.path_params
    return names["model"], names.get("version")


async def _read_and_decode(request: Request, pipeline: Pipeline) -> tuple[Reply, list[Image]]:
    """The wanted reply and the images. The upload is released before the images wait for the
    engine."""
    service = service_of(request)
    header = header_length(request.headers.get(LENGTH_HEADER))
    with service.uploads.lease() as lease:
        inputs = parse(  # the body is in no variable, so that its memory is freed
            await pipeline.read(read_bytes(request, lease)),
            header,
            pipeline.model,
            service.settings.max_images_per_request,
        )
        if inputs.seconds is not None:
            pipeline.shorten_deadline(inputs.seconds)
        context_of(request.scope).cancel_on_disconnect()
        return inputs.reply, await decoded(pipeline, inputs)
