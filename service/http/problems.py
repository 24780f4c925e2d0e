"""Maps exceptions to the error responses that clients get.

Error responses are `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`,
`code` and `request_id`. Endpoints below `/v2` return `{"error": detail}` instead, which their
protocol requires. The table `PROBLEMS` lists all expected errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from batching import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from service.errors import (
    BadImage,
    BadInference,
    BadRepositoryCall,
    BadTimeout,
    BodyTooLarge,
    ChangeUnderWay,
    CrossSite,
    DecodeQueueFull,
    DecoderLost,
    DecodersDown,
    DecodersKilled,
    EngineBusy,
    ImageTooExpensive,
    ImageTooLarge,
    LoadFailed,
    MissingImage,
    NotAdmin,
    NotLive,
    NotReady,
    RateLimited,
    RepositoryOff,
    Stalled,
    TooManyImages,
    TooManyMessages,
    Unauthorized,
    UnknownHost,
    UnknownModel,
    Unloaded,
    UnsupportedEncoding,
    UnsupportedImageType,
    UnsupportedMethod,
    UploadMemoryFull,
    UploadTimeout,
)
from service.http.context import context_of

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = {
    "description": "The ID of the request, which the log of the server contains as well. It is the "
    "ID that the client sent, or a new ID if the client sent no valid ID.",
    "schema": {"type": "string"},
}
SERVER_TIMING = {
    "description": "Duration in milliseconds of each completed stage: read, decode, queue, infer.",
    "schema": {"type": "string", "examples": ["read;dur=0.1, decode;dur=0.2, queue;dur=0.0"]},
}
MAX_RETRY_AFTER = 60
"""Maximum of Retry-After, in seconds. The time is an estimate, and longer estimates are too
uncertain."""
RETRY_AFTER = {
    "description": "Seconds after which the client should retry.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of error, and the response that clients get."""

    status: int
    """HTTP status."""
    code: str
    """Code that identifies the kind of error for programs."""
    title: str
    """Short description of the kind of error."""
    detail: str | None = None
    """Text that says what happened and what to do. None: the exception's message."""
    retry_after: float | None = None
    """Seconds after which a retry may succeed, unless the exception has its own `retry_after`.
    None: a retry would fail as well."""
    closes: bool = False
    """Whether the server closes the connection after the response."""


# Maps each exception class to its error. A subclass without an entry has its base class's error.
PROBLEMS: dict[type[Exception], Problem] = {
    MissingImage: Problem(422, "missing_image", "No image in the request"),
    BadImage: Problem(400, "bad_image", "The image cannot be decoded"),
    UnsupportedImageType: Problem(415, "unsupported_image_type", "Unsupported image type"),
    BodyTooLarge: Problem(413, "body_too_large", "The upload is too large"),
    ImageTooLarge: Problem(413, "image_too_large", "The image has too many pixels"),
    ImageTooExpensive: Problem(
        413, "image_too_expensive", "Decoding the image takes too much time or memory"
    ),
    TooManyImages: Problem(413, "too_many_images", "Too many images"),
    UploadTimeout: Problem(408, "upload_timeout", "The upload is too slow", closes=True),
    BadTimeout: Problem(400, "bad_timeout", "Invalid timeout"),
    Unauthorized: Problem(
        401,
        "unauthorized",
        "No valid API key",
        "This server requires an API key. Send the header Authorization: Bearer KEY or X-API-Key: "
        "KEY. The operator of this server issues keys.",
    ),
    RateLimited: Problem(
        429,
        "rate_limited",
        "Too many images from this client",
        "This client sent more images than the rate limit allows. Try again after the number of "
        "seconds in Retry-After.",
        retry_after=1,
    ),
    DecodersKilled: Problem(
        429,
        "decoders_killed",
        "Too many images of this client could not be decoded",
        "Several images of this client crashed the decoder, or took too much CPU time to decode. "
        "Try again after the number of seconds in Retry-After, with other images.",
        retry_after=1,
    ),
    UnknownHost: Problem(421, "unknown_host", "Unknown host"),
    CrossSite: Problem(
        403,
        "cross_site",
        "Cross-site request",
        "A page of another origin made the browser send this request. To allow that page, the "
        "operator of this server must add its origin to SHOAL_CORS_ORIGINS. If the page belongs to "
        "this server, a proxy has changed the Host header. Configure the proxy to keep the "
        "header. Or let the proxy send X-Forwarded-Host, and add its address to "
        "SHOAL_TRUSTED_PROXIES.",
    ),
    NotAdmin: Problem(
        401,
        "unauthorized",
        "No valid admin key",
        "This request requires an admin key; API keys for predictions are not accepted. Send the "
        "header Authorization: Bearer KEY or X-API-Key: KEY.",
    ),
    RepositoryOff: Problem(
        403,
        "repository_off",
        "The model repository is disabled",
        "Models cannot be loaded or unloaded by requests, because this server has no admin "
        "key. The operator of this server can set a key with SHOAL_ADMIN_KEYS or "
        "SHOAL_ADMIN_KEYS_FILE.",
    ),
    BadRepositoryCall: Problem(
        400, "bad_repository_call", "Invalid request to the model repository"
    ),
    LoadFailed: Problem(400, "load_failed", "The version cannot be loaded"),
    ChangeUnderWay: Problem(
        409,
        "change_under_way",
        "Another version is being loaded or unloaded",
        "This server is already loading or unloading a version. Try again later.",
    ),
    BadInference: Problem(400, "bad_inference", "Invalid inference request"),
    UnknownModel: Problem(404, "unknown_model", "Unknown model or version"),
    UnsupportedMethod: Problem(
        501,
        "unsupported_method",
        "Unsupported method",
        "Streaming inference is not supported. Send each request with ModelInfer: the server "
        "collects concurrent requests into batches.",
    ),
    UnsupportedEncoding: Problem(
        415,
        "unsupported_encoding",
        "Unsupported content encoding",
        "Compressed bodies are not supported. Send the body without Content-Encoding: images are "
        "compressed already.",
    ),
    QueueFull: Problem(
        503,
        "queue_full",
        "The queue is full",
        "The queue of requests is full. Try again after the number of seconds in Retry-After.",
    ),
    TooManyMessages: Problem(
        503,
        "too_many_messages",
        "Too many gRPC messages are arriving",
        "Too many gRPC messages were arriving at the same time, and this message was canceled. Try "
        "again after the number of seconds in retry-after.",
        retry_after=1,
    ),
    UploadMemoryFull: Problem(
        503,
        "upload_memory_full",
        "Too many uploads at the same time",
        "The uploads in progress hold the maximum amount of memory (SHOAL_MAX_UPLOAD_MEMORY). Try "
        "again after the number of seconds in Retry-After, or send smaller images.",
        retry_after=1,
    ),
    EngineBusy: Problem(
        503,
        "engine_busy",
        "The engine process is busy",
        "Requests arrive faster than the engine process can accept them. Try again after the "
        "number of seconds in Retry-After.",
        retry_after=1,
    ),
    DecodeQueueFull: Problem(
        503,
        "decode_queue_full",
        "Too many images wait to be decoded",
        "The queue of images that wait to be decoded is full. Try again after the number of "
        "seconds in Retry-After.",
        retry_after=1,
    ),
    DecoderLost: Problem(
        503,
        "decoder_lost",
        "The decoder process was killed",
        "The process that decoded this image was killed, for example because memory ran out. Try "
        "again after the number of seconds in Retry-After.",
        retry_after=1,
    ),
    DecodersDown: Problem(
        503,
        "decoders_down",
        "Images cannot be decoded",
        "No decoder process is ready. The log of the server contains the reason. Try again after "
        "the number of seconds in Retry-After.",
        retry_after=1,
    ),
    DeadlineUnreachable: Problem(
        503,
        "deadline_unreachable",
        "The deadline cannot be met",
        "Too many requests are waiting, so this request cannot finish before its deadline. "
        "Try again after the number of seconds in Retry-After, or send a longer timeout in "
        "X-Request-Timeout.",
    ),
    Draining: Problem(
        503,
        "draining",
        "Shutting down",
        "This server is shutting down and accepts no new requests. Try again: another server may "
        "accept the request.",
        retry_after=1,
        closes=True,
    ),
    TimeoutError: Problem(
        504,
        "deadline_exceeded",
        "The deadline has passed",
        "The request was accepted, but did not finish before its deadline. Try again.",
    ),
    EngineFailed: Problem(
        500,
        "engine_failed",
        "The model failed on this image",
        "The model could not classify this image. Other images are not affected. Try again. If "
        "this error occurs again, report the request ID.",
    ),
    EngineDead: Problem(
        503,
        "engine_dead",
        "The engine is dead",
        "The engine did not finish a batch, so this process exits. A new process may replace it. "
        "Try again after the number of seconds in Retry-After.",
        retry_after=1,
        closes=True,
    ),
    NotReady: Problem(
        503,
        "not_ready",
        "The model is not ready",
        "The model is being loaded and warmed up. Try again in a second.",
        retry_after=1,
    ),
    Unloaded: Problem(
        503,
        "not_ready",
        "No model is loaded",
        "The operator of this server unloaded the model. Try again when a model has been loaded.",
        retry_after=10,
    ),
    Stalled: Problem(
        503,
        "engine_stalled",
        "The engine is stalled",
        "The engine has been running one batch for more than ten times the predicted time. This "
        "server is ready again when the batch ends.",
        retry_after=1,
    ),
    NotLive: Problem(
        503,
        "not_live",
        "The engine has failed",
        "The engine failed on its last batches, or did not finish a batch. Restart this process.",
    ),
}

INTERNAL = Problem(
    500,
    "internal_error",
    "Unexpected error",
    "An unexpected error occurred. The log of the server contains the error with this request ID.",
)

CUT_OFF = Problem(
    503,
    "cut_off",
    "Shutting down",
    "This server is shutting down, and this request did not finish in time. Try again: another "
    "server may accept the request.",
    retry_after=1,
    closes=True,
)
BAD_REQUEST = Problem(
    400,
    "bad_request",
    "Invalid HTTP request",
    "The request is not valid HTTP/1.1. Check the client: this port supports neither TLS nor "
    "HTTP/2.",
    closes=True,
)
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "Too many connections",
    "This server has its maximum number of connections, and all of them are busy. Try again after "
    "the number of seconds in Retry-After.",
    retry_after=1,
    closes=True,
)
HEAD_TOO_LARGE = Problem(
    431,
    "head_too_large",
    "The headers are too large",
    "The request line and the headers are longer than 65,536 bytes, or there are more than 128 "
    "headers. Send fewer or shorter headers.",
    closes=True,
)


HANDLED: tuple[type[Exception], ...] = (*PROBLEMS, HTTPException)
"""The exceptions that `handle` turns into responses."""


def problem_for(error: Exception) -> Problem:
    """Return the error for an exception: the entry of its class or of its nearest base class."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return Problem(error.status_code, code, error.detail, _HTTP_DETAILS.get(error.status_code))
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return INTERNAL


def to_dict(problem: Problem, error: Exception | None, request_id: str) -> dict[str, Any]:
    """Return the body of the error response as plain data."""
    detail = problem.detail if problem.detail is not None else str(error)
    return {
        "type": f"urn:shoal:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": " ".join([detail, *getattr(error, "__notes__", ())]),
        "code": problem.code,
        "request_id": request_id,
    }


def retry_after(problem: Problem, error: Exception | None) -> int | None:
    """Return the seconds for the header Retry-After (RFC 9110, section 10.2.3).

    The result is an integer from 1 to `MAX_RETRY_AFTER`, or None if a retry would fail as well.
    """
    seconds: float | None = getattr(error, "retry_after", problem.retry_after)
    return None if seconds is None else math.ceil(max(1, min(MAX_RETRY_AFTER, seconds)))


def answer(problem: Problem, error: Exception | None, request_id: str, path: str = "/") -> Response:
    """Build the response for `problem`, in the format of the API that `path` belongs to."""
    body, media_type = to_dict(problem, error, request_id), MEDIA_TYPE
    if _is_v2(path):
        body, media_type = {"error": body["detail"]}, "application/json"
    headers = dict(getattr(error, "headers", None) or {})
    if (seconds := retry_after(problem, error)) is not None:
        headers["Retry-After"] = str(seconds)
    if problem.closes:
        headers["Connection"] = "close"
    return Response(orjson.dumps(body), problem.status, headers, media_type)


async def handle(request: Request, error: Exception) -> Response:
    """Build the response for an exception in `HANDLED`. Starlette calls this function."""
    problem = problem_for(error)
    if isinstance(error, HTTPException) and error.status_code == 405:
        error.headers = _allowed(request)
    context = context_of(request.scope)
    context.code = problem.code
    return answer(problem, error, context.request_id, request.scope["path"])


def _allowed(request: Request) -> dict[str, str]:
    """Return the header Allow, with the methods of all routes that match the path of `request`.

    Starlette's own header has only the methods of the first route that matches.
    """
    here = (r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in here for method in getattr(route, "methods", None) or ()}
    return {"Allow": ", ".join(sorted(methods))} if methods else {}


def documented(kinds: Iterable[type[Exception]], path: str = "/") -> dict[int | str, Any]:
    """Describe the error responses of an endpoint for OpenAPI.

    Args:
        kinds: The exceptions that the endpoint raises. Unexpected errors are added.
        path: The path of the endpoint, which determines the format of its errors.

    Returns:
        One response for each HTTP status, with one example for each code.
    """
    responses: dict[int | str, Any] = {}
    v2 = _is_v2(path)
    media_type = "application/json" if v2 else MEDIA_TYPE
    schema = {"$ref": f"#/components/schemas/{'InferenceError' if v2 else 'ProblemDetails'}"}
    for kind in (*kinds, Exception):
        problem = PROBLEMS.get(kind, INTERNAL)
        example = to_dict(problem, None, "4f1d0f9b6a5c4a0e9d1c2b3a4f5e6d7c")
        if problem.detail is None:
            example["detail"] = _EXAMPLES.get(kind, problem.title)
        response = responses.setdefault(
            problem.status,
            {
                "description": "",
                "headers": {"X-Request-ID": REQUEST_ID, "Server-Timing": SERVER_TIMING},
                "content": {media_type: {"schema": schema, "examples": {}}},
            },
        )
        codes = response["content"][media_type]["examples"]
        value = {"error": example["detail"]} if v2 else example
        codes[problem.code] = {"summary": problem.title, "value": value}
        response["description"] = "; ".join(e["summary"] for e in codes.values())
        if problem.status in (429, 503):
            response["headers"]["Retry-After"] = RETRY_AFTER
    return responses


def _is_v2(path: str) -> bool:
    """Whether `path` belongs to the Open Inference Protocol, which has another error format."""
    return path == "/v2" or path.startswith("/v2/")


_HTTP_DETAILS = {
    404: "There is nothing at this path. Send images to POST /predict. /docs lists all paths.",
    405: "This path does not support this method. The header Allow lists the supported methods.",
}
_EXAMPLES: dict[type[Exception], str] = {
    MissingImage: "No image: send multipart/form-data with a file in the field 'img'.",
    BodyTooLarge: "The upload is larger than the maximum of 10,485,760 bytes.",
    UploadTimeout: "The upload did not arrive within 30 seconds.",
    BadInference: "inputs.0.shape: Field required.",
    UnknownModel: "This server serves only version '1' of the model 'cifar_resnet20_v1'.",
    UnknownHost: "This server does not accept requests for the host 'shoal.example.com'. Use the "
    "IP address or a name of this server. The operator of this server sets the names in "
    "SHOAL_ALLOWED_HOSTS.",
}
