"""The paths that are served. Handlers contain no `try`: what they raise is answered by `errors`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, PlainTextResponse

from batching import DeadlineUnreachable, Draining, EngineFailed, QueueFull
from model_store.engine import Image, Probabilities
from model_store.manifest import Manifest
from service import decode, errors, schemas
from service.departure import ends_with_client
from service.metrics import MEDIA_TYPE, Metrics
from service.serving import Serving
from service.settings import Settings
from service.upload import read_image

TIMEOUT_HEADER = "X-Request-Timeout"
SENTENCE = "The input picture is classified as [{}], with probability {:.3f}."


class Direct(APIRoute):
    """Calls the endpoint with the request: there is nothing for FastAPI to inject or validate."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(route_class=Direct)

FORM = {
    "type": "object",
    "required": ["img"],
    "properties": {
        "img": {
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "format": "binary",
            "description": "JPEG, PNG, WebP, BMP or GIF",
        }
    },
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
UPLOAD = {
    "required": True,
    "content": {"multipart/form-data": {"schema": FORM}}
    | {f"image/{kind}": BINARY for kind in ("jpeg", "png", "webp", "bmp", "gif")},
}
TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds in which the answer is wanted, if less than the server's own limit",
}
SERVER_TIMING = {
    "description": "Milliseconds for read, decode, queue and infer",
    "schema": {"type": "string", "examples": ["read;dur=0.1, decode;dur=0.2, queue;dur=0.0"]},
}
REFUSALS = (
    errors.Unauthorized,
    errors.MissingImage,
    decode.BadImage,
    decode.UnsupportedImageType,
    errors.BodyTooLarge,
    decode.ImageTooLarge,
    errors.UploadTimeout,
    errors.BadTimeout,
    errors.NotReady,
    QueueFull,
    DeadlineUnreachable,
    Draining,
    TimeoutError,
    EngineFailed,
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
            "headers": {"X-Request-ID": errors.REQUEST_ID, "Server-Timing": SERVER_TIMING},
        },
        **errors.documented(REFUSALS),
    },
)
async def predict(request: Request) -> Response:
    """The class of the image in the form's file field `img`, or in the body itself.

    With `Accept: text/plain` the answer is the bare sentence.
    """
    serving: Serving = request.app.state.serving
    settings: Settings = request.app.state.settings
    timing: dict[str, float] = request.state.timing
    request.app.state.keys.check(request.headers)
    ready = serving.ready  # before the upload: why read what cannot be answered
    timeout = _timeout(request, settings)
    image = await _image(request, timeout)
    with ends_with_client(request):
        answer = await ready.batcher.submit(image, timeout - timing["decode"])
    timing["queue"] = answer.queue_seconds
    timing["infer"] = answer.infer_seconds
    return _respond(request, ready.engine.model, answer.value)


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
    if not serving.live:
        raise errors.NotLive
    return JSONResponse({"status": "live"})


@router.get(
    "/readyz",
    tags=["probes"],
    summary="Can it answer requests?",
    response_model=schemas.Ready,
    responses=errors.documented([errors.NotReady, Draining]),
)
async def readyz(request: Request) -> Response:
    """200 when the model is loaded and warm, with what serves and on what. For readiness probes."""
    serving: Serving = request.app.state.serving
    ready = serving.ready
    if serving.draining:
        raise Draining("shutting down", retry_after=1)
    return JSONResponse(
        {
            "status": "ready",
            "model": {"name": ready.engine.model.name, "version": ready.engine.model.version},
            "device": ready.engine.device.name,
            "device_reason": ready.engine.device.reason,
            "latency": {str(size): round(s, 6) for size, s in ready.latency.as_dict().items()},
        }
    )


@router.get(
    "/metrics",
    tags=["probes"],
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
)
async def metrics(request: Request) -> Response:
    """Counters, histograms and what has a value now, in Prometheus' text format."""
    found: Metrics = request.app.state.metrics
    return Response(found.text(), media_type=MEDIA_TYPE)


def _timeout(request: Request, settings: Settings) -> float:
    """Seconds that this request may take: its own wish, within the server's limit."""
    wish = request.headers.get(TIMEOUT_HEADER)
    if wish is None:
        return settings.request_timeout
    seconds = _number(wish)
    if not 0 < seconds < math.inf:
        raise errors.BadTimeout(
            f"{TIMEOUT_HEADER}: {wish!r} is not a positive number of seconds. "
            "Send a number such as 0.25, or leave the header out."
        )
    return min(seconds, settings.request_timeout)


async def _image(request: Request, timeout: float) -> Image:  # noqa: ASYNC109 - foreseen, too
    """Read the upload and decode it, the latter within `timeout` seconds."""
    serving: Serving = request.app.state.serving
    settings: Settings = request.app.state.settings
    timing: dict[str, float] = request.state.timing
    with serving.uploads.holding() as hold:
        began = time.perf_counter()
        data = await read_image(request, settings.max_upload_bytes, settings.upload_timeout, hold)
        started = time.perf_counter()
        timing["read"] = started - began
        upload = decode.identify(data, settings.max_image_pixels)
        if upload.is_small:
            image = upload.decode()  # sooner done than handed over
        else:
            with ends_with_client(request):
                image = await serving.decoders.run(upload, timeout)
        timing["decode"] = time.perf_counter() - started
    return image


def _respond(request: Request, model: Manifest, row: Probabilities) -> Response:
    best = int(np.argmax(row))
    probabilities = [round(p, 6) for p in row.tolist()]
    sentence = SENTENCE.format(model.classes[best], probabilities[best])
    if _wants_text(request.headers.get("accept", "")):
        return PlainTextResponse(sentence)
    body: dict[str, Any] = {
        "class": model.classes[best],
        "probability": probabilities[best],
        "message": sentence,
        "probabilities": dict(zip(model.classes, probabilities, strict=True)),
        "model": {"name": model.name, "version": model.version},
    }
    return Response(orjson.dumps(body), media_type="application/json")


def _wants_text(accept: str) -> bool:
    """Does the client prefer text/plain to JSON? Where it likes both equally it gets JSON."""
    if "text/plain" not in (accept := accept.lower()):
        return False
    weights = dict(_media_range(part) for part in accept.split(","))
    anything = weights.get("*/*", 0.0)
    json_weight = weights.get("application/json", weights.get("application/*", anything))
    return weights.get("text/plain", 0.0) > json_weight


def _media_range(part: str) -> tuple[str, float]:
    """`text/plain;q=0.5` -> ("text/plain", 0.5); a weight that cannot be read is 0 (RFC 9110)."""
    kind, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return kind, _number(value)
    return kind, 1.0


def _number(text: str) -> float:
    """0 for what is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0
