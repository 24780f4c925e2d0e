"""The paths that are served. Handlers contain no `try`: what they raise is answered by `errors`."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image
from service import errors
from service.api import schemas
from service.errors import BadImage, ImageTooExpensive, ImageTooLarge, UnsupportedImageType
from service.http import problems, request_headers
from service.http.disconnect import cancel_on_disconnect
from service.http.fast_path import FastRoute
from service.inference.pipeline import Pipeline, Provisions, each, forgiving
from service.inference.serving import Classification
from service.settings import Settings
from service.telemetry.metrics import Metrics
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
REFUSALS = (
    errors.UnknownHost,
    errors.CrossSite,
    errors.Unauthorized,
    errors.RateLimited,
    errors.MissingImage,
    BadImage,
    UnsupportedImageType,
    errors.BodyTooLarge,
    ImageTooLarge,
    ImageTooExpensive,
    errors.UploadTimeout,
    errors.BadTimeout,
    errors.NotReady,
    QueueFull,
    errors.DecodeQueueFull,
    errors.DecoderLost,
    errors.DecodersDown,
    DeadlineUnreachable,
    errors.DecodersKilled,
    errors.DecodeQueueFull,
    errors.DecoderLost,
    errors.DecodersDown,
    Draining,
    TimeoutError,
    EngineFailed,
    EngineDead,
)
# Of a whole batch. What befalls an image, queue_full included, is told in its place.
BATCH_REFUSALS = (
    errors.UnknownHost,
    errors.CrossSite,
    errors.Unauthorized,
    errors.RateLimited,
    errors.MissingImage,
    errors.BodyTooLarge,
    errors.TooManyImages,
    errors.UploadTimeout,
    errors.BadTimeout,
    errors.NotReady,
    QueueFull,
)


@router.post(
    "/predict",
    tags=["predictions"],
    summary="Classify an image",
    response_model=schemas.Prediction,
    openapi_extra={"requestBody": UPLOAD, "parameters": [request_headers.TIMEOUT]},
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": HEADERS,
        },
        **problems.documented(REFUSALS),
    },
)
async def predict(request: Request) -> Response:
    """The class of the image in the form's file field `img`, or in the body itself.

    With `Accept: text/plain` the answer is the bare sentence. `SHOAL_DEFAULT_ANSWER` chooses the
    answer to requests whose `Accept` prefers neither that nor JSON.
    """
    journey = begun(request)
    with journey:
        data = await journey.read(partial(read_image, request))
        with cancel_on_disconnect(request):
            image = await journey.decode(data)
            del data
            journey.forget()  # before the image waits for the engine
            classified = await journey.infer(image)
    return _respond(request, classified)


@router.post(
    "/predict/batch",
    tags=["predictions"],
    summary="Classify several images",
    response_model=schemas.Predictions,
    openapi_extra={"requestBody": UPLOADS, "parameters": [request_headers.TIMEOUT]},
    responses={200: {"headers": HEADERS}, **problems.documented(BATCH_REFUSALS)},
)
async def predict_batch(request: Request) -> Response:
    """The classes of the images in the form's file fields `img`, in their order.

    An image that cannot be answered fails alone: its place has the problem, as `/predict` would
    have told it, and where trying again may help the seconds to wait, `retry_after`.
    """
    journey = begun(request)
    images = await _images(request, journey)
    with cancel_on_disconnect(request):
        outcomes = await each(forgiving(journey.infer), images)
    predictions = [
        _problem(outcome, request) if isinstance(outcome, Exception) else _prediction(outcome)
        for outcome in outcomes
    ]
    return Response(orjson.dumps({"predictions": predictions}), media_type="application/json")


def begun(request: Request) -> Pipeline:
    """Raises BadTimeout and what Journey raises."""
    scope = request.scope
    provisions: Provisions = scope["app"].state.provisions
    timeout = request_headers.timeout(request, provisions.settings.request_timeout)
    client = scope.get("client")
    host = client[0] if client else ""
    return Pipeline(provisions, request.headers, host, scope["state"]["timing"], timeout)


async def _images(request: Request, journey: Pipeline) -> list[Image | Exception]:
    """Read and decoded, as far as they can be; the uploads are forgotten before the images wait for
    the engine."""
    settings: Settings = request.app.state.settings
    read_all = partial(read_images, request, max_images=settings.max_images_per_request)
    with journey:
        uploads = await journey.read(read_all)
        journey.count(len(uploads))
        with cancel_on_disconnect(request):
            return await each(forgiving(journey.decode), uploads, pause=True)


def _respond(request: Request, classified: Classification) -> Response:
    body = _prediction(classified)
    settings: Settings = request.app.state.settings
    if request_headers.wants_text(request, default=settings.default_answer == "text"):
        return PlainTextResponse(body["message"])
    return Response(orjson.dumps(body), media_type="application/json")


def _prediction(classified: Classification) -> dict[str, Any]:
    model, row = classified.model, classified.probabilities
    exact = row.tolist()
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
    """In the place of a prediction; counted as a refusal of its own."""
    problem = problems.problem_for(error)
    metrics: Metrics = request.app.state.metrics
    metrics.count_refusal(problem.code)
    body = problems.told(problem, error, request.state.request_id)
    if (seconds := problems.retry_after(problem, error)) is not None:
        body["retry_after"] = seconds
    return body
