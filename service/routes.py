"""The paths that are served. Handlers contain no `try`: what they raise is answered by `errors`."""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image
from service import errors, schemas, wishes
from service.decoding.errors import (
    BadImage,
    ImageTooExpensive,
    ImageTooLarge,
    UnsupportedImageType,
)
from service.departure import ends_with_client
from service.direct import Direct
from service.gauges import Gauges
from service.journey import Journey, Provisions, each, forgiving
from service.keys import Keys
from service.metrics import MEDIA_TYPE, Metrics
from service.scrapes import Scrapes
from service.serving import Classified, Serving
from service.settings import Settings
from service.upload import read_image, read_images

SENTENCE = "The input picture is classified as [{}], with probability {:.3f}."

router = APIRouter(route_class=Direct)
scrapes = APIRouter(route_class=Direct)
"""`/metrics` alone, which may have a port of its own."""

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
HEADERS = {"X-Request-ID": errors.REQUEST_ID, "Server-Timing": errors.SERVER_TIMING}
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
    openapi_extra={"requestBody": UPLOAD, "parameters": [wishes.TIMEOUT]},
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": HEADERS,
        },
        **errors.documented(REFUSALS),
    },
)
async def predict(request: Request) -> Response:
    """The class of the image in the form's file field `img`, or in the body itself.

    With `Accept: text/plain` the answer is the bare sentence.
    """
    journey = begun(request)
    with journey:
        data = await journey.read(partial(read_image, request))
        with ends_with_client(request):
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
    openapi_extra={"requestBody": UPLOADS, "parameters": [wishes.TIMEOUT]},
    responses={200: {"headers": HEADERS}, **errors.documented(BATCH_REFUSALS)},
)
async def predict_batch(request: Request) -> Response:
    """The classes of the images in the form's file fields `img`, in their order.

    An image that cannot be answered fails alone: its place has the problem, as `/predict` would
    have told it, and where trying again may help the seconds to wait, `retry_after`.
    """
    journey = begun(request)
    images = await _images(request, journey)
    with ends_with_client(request):
        outcomes = await each(forgiving(journey.infer), images)
    predictions = [
        _problem(outcome, request) if isinstance(outcome, Exception) else _prediction(outcome)
        for outcome in outcomes
    ]
    return Response(orjson.dumps({"predictions": predictions}), media_type="application/json")


@router.get(
    "/healthz",
    tags=["probes"],
    summary="Is the process alive?",
    response_model=schemas.Live,
    responses=errors.documented([errors.NotLive]),
)
async def healthz(request: Request) -> Response:
    """200 unless only a restart helps. For liveness probes."""
    serving: Serving = request.app.state.serving
    if not await serving.live():
        raise errors.NotLive
    return JSONResponse({"status": "live"})


@router.get(
    "/readyz",
    tags=["probes"],
    summary="Can it answer requests?",
    response_model=schemas.Ready,
    responses=errors.documented([errors.NotReady, errors.Stalled, errors.DecodersDown, Draining]),
)
async def readyz(request: Request) -> Response:
    """200 when the model is loaded and warm and the engine makes progress, with what serves and on
    what. For readiness probes."""
    serving: Serving = request.app.state.serving
    ready, figures = await serving.available()
    expected = figures.expected if figures is not None else {}
    return JSONResponse(
        {
            "status": "ready",
            "model": {"name": ready.model.name, "version": ready.model.version},
            "device": ready.device.name,
            "device_reason": ready.device.reason,
            "precision": ready.precision.name,
            "precision_reason": ready.precision.reason,
            "latency": {size: round(seconds, 6) for size, seconds in expected.items()},
        }
    )


@scrapes.get(
    "/metrics",
    tags=["probes"],
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses=errors.documented([errors.Unauthorized]),
)
async def metrics(request: Request) -> Response:
    """Counters, histograms and what has a value now, in Prometheus' text format."""
    settings: Settings = request.app.state.settings
    if settings.metrics_need_key:
        keys: Keys = request.app.state.keys
        keys.check(request.headers)
    found: Scrapes = request.app.state.scrapes
    return Response(await found.text(), media_type=MEDIA_TYPE)


async def render(metrics: Metrics, serving: Serving) -> bytes:
    """The text of `/metrics` at the moment."""
    metrics.note(serving.uploads.held, serving.decoders.waiting)
    now = Gauges(serving.inference.started, serving.draining, await serving.figures())
    return metrics.text(now)


def begun(request: Request) -> Journey:
    """Raises BadTimeout and what Journey raises."""
    scope = request.scope
    provisions: Provisions = scope["app"].state.provisions
    timeout = wishes.timeout(request, provisions.settings.request_timeout)
    client = scope.get("client")
    host = client[0] if client else ""
    return Journey(provisions, request.headers, host, scope["state"]["timing"], timeout)


async def _images(request: Request, journey: Journey) -> list[Image | Exception]:
    """Read and decoded, as far as they can be; the uploads are forgotten before the images wait for
    the engine."""
    settings: Settings = request.app.state.settings
    read_all = partial(read_images, request, max_images=settings.max_images_per_request)
    with journey:
        uploads = await journey.read(read_all)
        journey.count(len(uploads))
        with ends_with_client(request):
            return await each(forgiving(journey.decode), uploads, pause=True)


def _respond(request: Request, classified: Classified) -> Response:
    body = _prediction(classified)
    if wishes.wants_text(request):
        return PlainTextResponse(body["message"])
    return Response(orjson.dumps(body), media_type="application/json")


def _prediction(classified: Classified) -> dict[str, Any]:
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
    problem = errors.problem_for(error)
    metrics: Metrics = request.app.state.metrics
    metrics.count_refusal(problem.code)
    body = errors.told(problem, error, request.state.request_id)
    if (seconds := errors.retry_after(problem, error)) is not None:
        body["retry_after"] = seconds
    return body
