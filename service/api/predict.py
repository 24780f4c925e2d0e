"""Classifies uploaded images: the endpoints `POST /predict` and `POST /predict/batch`.

The endpoints catch no exceptions: `service.http.problems` turns exceptions into error responses.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image
from service import errors
from service.api import schemas
from service.http import problems
from service.http.context import TIMEOUT, context_of
from service.http.middleware import FastRoute
from service.inference.gather import gather, returning_errors
from service.inference.pipeline import Pipeline, begin, service_of
from service.inference.service import Classification
from service.upload.body import read_image, read_images

SENTENCE = "The input picture is classified as [{}], with probability {:.3f}."

router = APIRouter(route_class=FastRoute)

FILE = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
    "format": "binary",
    "description": "JPEG, PNG, WebP, BMP or GIF",
}
FORM = {"type": "object", "required": ["img"], "properties": {"img": FILE}}
FORM_OF_MANY = FORM | {"properties": {"img": {"type": "array", "minItems": 1, "items": FILE}}}
BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD = {
    "required": True,
    "content": {"multipart/form-data": {"schema": FORM}}
    | {f"image/{kind}": BINARY for kind in ("jpeg", "png", "webp", "bmp", "gif")},
}
UPLOADS = {"required": True, "content": {"multipart/form-data": {"schema": FORM_OF_MANY}}}
HEADERS = {"X-Request-ID": problems.REQUEST_ID, "Server-Timing": problems.SERVER_TIMING}
UPLOAD_ERRORS = (
    errors.UnknownHost,
    errors.CrossSite,
    errors.Unauthorized,
    errors.RateLimited,
    errors.MissingImage,
    errors.BodyTooLarge,
    errors.UploadTimeout,
    errors.UploadMemoryFull,
    errors.BadTimeout,
    errors.NotReady,
)
IMAGE_ERRORS = (
    errors.BadImage,
    errors.UnsupportedImageType,
    errors.ImageTooLarge,
    errors.ImageTooExpensive,
    errors.DecodersKilled,
    errors.DecodeQueueFull,
    errors.DecoderLost,
    errors.DecodersDown,
    QueueFull,
    errors.EngineBusy,
    DeadlineUnreachable,
    Draining,
    TimeoutError,
    EngineFailed,
    EngineDead,
)


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Classify an image",
    response_model=schemas.Prediction,
    openapi_extra={"requestBody": UPLOAD, "parameters": [TIMEOUT]},
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": HEADERS,
        },
        **problems.documented((*UPLOAD_ERRORS, *IMAGE_ERRORS)),
    },
)
async def predict(request: Request) -> Response:
    """Classify one image, sent in the file field `img` of a form or as the body itself.

    With `Accept: text/plain`, the response is a sentence instead of JSON. If the client prefers
    neither format, the setting `SHOAL_DEFAULT_ANSWER` determines the format.
    """
    pipeline = begin(request)
    with service_of(request).uploads.lease() as lease:
        data = await pipeline.read(read_image(request, lease))
        context_of(request.scope).cancel_on_disconnect()
        image = await pipeline.decode(data)
        del data
        lease.release()  # before the image waits for the engine
        classification = await pipeline.infer(image)
    return _respond(request, classification)


@router.post(
    "/predict/batch",
    tags=["predictions"],
    summary="Classify several images",
    response_model=schemas.Predictions,
    openapi_extra={"requestBody": UPLOADS, "parameters": [TIMEOUT]},
    responses={
        200: {"headers": HEADERS},
        **problems.documented((*UPLOAD_ERRORS, errors.TooManyImages)),
    },
)
async def predict_batch(request: Request) -> Response:
    """Classify the images in the file fields `img` of a form.

    The response has one result for each image, in the order of the form. If an image cannot be
    classified, its result is the error that `/predict` would have returned; the other images are
    not affected. If a retry may succeed, the error has the member `retry_after`, in seconds.
    """
    pipeline = begin(request)
    images = await _read_and_decode(request, pipeline)
    results = await gather(returning_errors(pipeline.infer), images)
    predictions = [
        _problem(result, request) if isinstance(result, Exception) else _prediction(result)
        for result in results
    ]
    return Response(orjson.dumps({"predictions": predictions}), media_type="application/json")


async def _read_and_decode(request: Request, pipeline: Pipeline) -> list[Image | Exception]:
    """Read the form and decode its images. Returns one image or exception for each upload.

    The memory of the uploads is released before the images wait for the engine.
    """
    service = service_of(request)
    with service.uploads.lease() as lease:
        body = read_images(request, lease, service.settings.max_images_per_request)
        uploads = await pipeline.read(body)
        pipeline.count_images(len(uploads))
        context_of(request.scope).cancel_on_disconnect()
        return await gather(returning_errors(pipeline.decode), uploads, pause=True)


def _respond(request: Request, classification: Classification) -> Response:
    prediction = _prediction(classification)
    by_default = service_of(request).settings.default_answer == "text"
    if context_of(request.scope).prefers_text(by_default):
        return PlainTextResponse(prediction["message"])
    return Response(orjson.dumps(prediction), media_type="application/json")


def _prediction(classification: Classification) -> dict[str, Any]:
    model, exact = classification.model, classification.probabilities.tolist()
    best = exact.index(max(exact))
    probabilities = [round(1e6 * p) / 1e6 for p in exact]
    return {
        "class": model.classes[best],
        "probability": probabilities[best],
        "message": SENTENCE.format(model.classes[best], probabilities[best]),
        "probabilities": dict(zip(model.classes, probabilities, strict=True)),
        "model": {"name": model.name, "version": model.version},
    }


def _problem(error: Exception, request: Request) -> dict[str, Any]:
    """Return the error of one image as plain data, and count it in the metrics."""
    problem = problems.problem_for(error)
    service_of(request).metrics.count_refusal(problem.code)
    body = problems.to_dict(problem, error, context_of(request.scope).request_id)
    if (seconds := problems.retry_after(problem, error)) is not None:
        body["retry_after"] = seconds
    return body
