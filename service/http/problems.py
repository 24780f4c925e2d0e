"""What goes wrong and what the client gets: one table, one shape of body.

Every error is `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `detail`,
`code` and `request_id`. Exceptions know nothing of HTTP; routes contain no `try`.
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
    "description": "The request's own, if it is sane, else a new one; it is in the log, too",
    "schema": {"type": "string"},
}
SERVER_TIMING = {
    "description": "Milliseconds for read, decode, queue and infer, as far as it came",
    "schema": {"type": "string", "examples": ["read;dur=0.1, decode;dur=0.2, queue;dur=0.0"]},
}
MAX_RETRY_AFTER = 60
"""Maximum of Retry-After, in seconds. Estimates may be wrong, and must not send clients away for
longer."""
RETRY_AFTER = {
    "description": "Seconds after which to try again",
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_RETRY_AFTER},
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of the table. `detail` None: the exception's own message is for people."""

    status: int
    code: str
    title: str
    detail: str | None = None
    retry_after: float | None = None
    closes: bool = False


PROBLEMS: dict[type[Exception], Problem] = {
    MissingImage: Problem(422, "missing_image", "No image in the request"),
    BadImage: Problem(400, "bad_image", "Not a readable image"),
    UnsupportedImageType: Problem(415, "unsupported_image_type", "Image format not served"),
    BodyTooLarge: Problem(413, "body_too_large", "Upload too large"),
    ImageTooLarge: Problem(413, "image_too_large", "Too many pixels"),
    ImageTooExpensive: Problem(413, "image_too_expensive", "Decoding the image takes too much"),
    TooManyImages: Problem(413, "too_many_images", "Too many images"),
    UploadTimeout: Problem(408, "upload_timeout", "Upload too slow", closes=True),
    BadTimeout: Problem(400, "bad_timeout", "Not a number of seconds"),
    Unauthorized: Problem(
        401,
        "unauthorized",
        "No valid key",
        "This server answers who has a key: send Authorization: Bearer KEY, or X-API-Key: KEY. Ask "
        "whoever runs it for one.",
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
        "Several of your images crashed their decoder, or took too much CPU time to decode. Try "
        "again after the number of seconds in Retry-After, with other images.",
        retry_after=1,
    ),
    UnknownHost: Problem(421, "unknown_host", "Host not allowed"),
    CrossSite: Problem(
        403,
        "cross_site",
        "Cross-site request",
        "A browser sent this request for a page of another origin. To allow that page, add its "
        "origin to SHOAL_CORS_ORIGINS. If it is this server's own page, the proxy in front must "
        "pass on Host unchanged, or send X-Forwarded-Host and be in SHOAL_TRUSTED_PROXIES.",
    ),
    NotAdmin: Problem(
        401,
        "unauthorized",
        "No valid admin key",
        "This is for who has an admin key, which is another than those for predictions: send "
        "Authorization: Bearer KEY, or X-API-Key: KEY. Ask whoever runs this server for one.",
    ),
    RepositoryOff: Problem(
        403,
        "repository_off",
        "Repository calls are off",
        "Nobody may load or unload a model here, since no admin key is set. Whoever runs this "
        "server sets one with SHOAL_ADMIN_KEYS or SHOAL_ADMIN_KEYS_FILE.",
    ),
    BadRepositoryCall: Problem(400, "bad_repository_call", "Not a call that can be followed"),
    LoadFailed: Problem(400, "load_failed", "The version cannot be served"),
    ChangeUnderWay: Problem(
        409,
        "change_under_way",
        "Another version is being loaded or unloaded",
        "Another version is being loaded or unloaded. Wait until that has ended and try again.",
    ),
    BadInference: Problem(400, "bad_inference", "Not a request that can be inferred"),
    UnknownModel: Problem(404, "unknown_model", "Another model is served"),
    UnsupportedMethod: Problem(
        501,
        "unsupported_method",
        "Not served",
        "Streams are not served, and gain nothing here: send each request by ModelInfer. What is "
        "under way together is computed together.",
    ),
    UnsupportedEncoding: Problem(
        415,
        "unsupported_encoding",
        "Compressed",
        "Compressed bodies are not served, and images gain nothing by it. Send the body as it is, "
        "without Content-Encoding.",
    ),
    QueueFull: Problem(
        503,
        "queue_full",
        "Too many requests are waiting",
        "The queue is full. Try again after the seconds that Retry-After says.",
    ),
    UploadMemoryFull: Problem(
        503,
        "upload_memory_full",
        "Too many uploads at the same time",
        "Uploads hold as much memory as they may (SHOAL_MAX_UPLOAD_MEMORY). Try again after the "
        "number of seconds in Retry-After, or send smaller images.",
        retry_after=1,
    ),
    EngineBusy: Problem(
        503,
        "engine_busy",
        "The engine process is busy",
        "The engine process does not accept requests as fast as they arrive. Try again after the "
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
        "The decoder of the image was ended",
        "The process that decoded this image was ended from outside, for lack of memory for "
        "instance. Try again after the number of seconds in Retry-After.",
        retry_after=1,
    ),
    DecodersDown: Problem(
        503,
        "decoders_down",
        "Images cannot be decoded",
        "No process that decodes images can be started; the server's log says why. Try again after "
        "the number of seconds in Retry-After.",
        retry_after=1,
    ),
    DeadlineUnreachable: Problem(
        503,
        "deadline_unreachable",
        "The answer would come too late",
        "Going by what is waiting and what it takes, this request could not be answered in the "
        "time it has. Try again after the seconds that Retry-After says, or allow more time.",
    ),
    Draining: Problem(
        503,
        "draining",
        "Shutting down",
        "This server is shutting down and takes no new requests. Try again: another will answer.",
        retry_after=1,
        closes=True,
    ),
    TimeoutError: Problem(
        504,
        "deadline_exceeded",
        "Not answered in time",
        "The image was accepted and its answer did not come in time. Try again.",
    ),
    EngineFailed: Problem(
        500,
        "engine_failed",
        "The network failed on this image",
        "The network could not compute this image; others are not affected. Try again, and if "
        "it fails again, report the request id.",
    ),
    EngineDead: Problem(
        503,
        "engine_dead",
        "The engine does not answer",
        "The engine did not come back from a batch, and this process ends so that another takes "
        "its place. Try again after the seconds that Retry-After says.",
        retry_after=1,
        closes=True,
    ),
    NotReady: Problem(
        503,
        "not_ready",
        "Not ready yet",
        "The model is being loaded and warmed up. Try again in a second.",
        retry_after=1,
    ),
    Unloaded: Problem(
        503,
        "not_ready",
        "No model is loaded",
        "The model was unloaded by whoever runs this server, and is not served until it is loaded "
        "again.",
        retry_after=10,
    ),
    Stalled: Problem(
        503,
        "engine_stalled",
        "The engine is stalled",
        "The engine has been computing one batch for more than ten times its predicted time. This "
        "server is ready again when that batch ends.",
        retry_after=1,
    ),
    NotLive: Problem(
        503,
        "not_live",
        "The engine does not answer",
        "The engine failed on everything lately, or does not come back from a batch. This process "
        "should be restarted.",
    ),
}

# https://grpc.io/docs/guides/status-codes/: what an RPC ends with instead of a problem's status.
RPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "RESOURCE_EXHAUSTED",  # as gRPC itself says of a message that is too large
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

INTERNAL = Problem(
    500,
    "internal_error",
    "Unexpected error",
    "Something unexpected went wrong here; it is in the server's log under this request id.",
)

CUT_OFF = Problem(
    503,
    "cut_off",
    "Shutting down",
    "This server is shutting down and could not wait for the answer. Try again: another will.",
    retry_after=1,
    closes=True,
)
BAD_REQUEST = Problem(
    400,
    "bad_request",
    "Not HTTP/1.1",
    "The request cannot be read as HTTP/1.1. Check the client, and that it speaks plain HTTP to "
    "this port and not TLS or HTTP/2.",
    closes=True,
)
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "Too many connections",
    "This server has as many connections as it may have, and all of them are busy. Try again "
    "after the seconds that Retry-After says.",
    retry_after=1,
    closes=True,
)
HEAD_TOO_LARGE = Problem(
    431,
    "head_too_large",
    "Head too large",
    "The request's first line and headers are longer than 65,536 bytes, or it has more than 128 "
    "headers. Send fewer, or shorter ones.",
    closes=True,
)


HANDLED: tuple[type[Exception], ...] = (*PROBLEMS, HTTPException)
"""What `handle` is for."""


def problem_for(error: Exception) -> Problem:
    """The row for an exception, by its nearest class in the table."""
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return Problem(error.status_code, code, error.detail, _HTTP_DETAILS.get(error.status_code))
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return INTERNAL


def to_dict(problem: Problem, error: Exception | None, request_id: str) -> dict[str, Any]:
    """The problem's details as plain data."""
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
    """Whole seconds for Retry-After (RFC 9110, section 10.2.3), at least 1 and at most
    MAX_RETRY_AFTER, whatever was estimated; None where trying again does not help."""
    seconds: float | None = getattr(error, "retry_after", problem.retry_after)
    return None if seconds is None else math.ceil(max(1, min(MAX_RETRY_AFTER, seconds)))


def answer(problem: Problem, error: Exception | None, request_id: str, path: str = "/") -> Response:
    """The response that tells `problem`, in the words of the protocol that `path` belongs to."""
    body, media_type = to_dict(problem, error, request_id), MEDIA_TYPE
    if _speaks_v2(path):
        body, media_type = {"error": body["detail"]}, "application/json"
    headers = dict(getattr(error, "headers", None) or {})
    if (seconds := retry_after(problem, error)) is not None:
        headers["Retry-After"] = str(seconds)
    if problem.closes:
        headers["Connection"] = "close"
    return Response(orjson.dumps(body), problem.status, headers, media_type)


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's handler for all that is `HANDLED`."""
    problem = problem_for(error)
    if isinstance(error, HTTPException) and error.status_code == 405:
        error.headers = _allowed(request)
    context = context_of(request.scope)
    context.code = problem.code
    return answer(problem, error, context.request_id, request.scope["path"])


def _allowed(request: Request) -> dict[str, str]:
    """The methods of every route of this path; Starlette names those of the first alone. Nothing
    where no route has it: files are served from a folder."""
    here = (r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE)
    methods = {method for route in here for method in getattr(route, "methods", None) or ()}
    return {"Allow": ", ".join(sorted(methods))} if methods else {}


def documented(kinds: Iterable[type[Exception]], path: str = "/") -> dict[int | str, Any]:
    """The rows for `kinds`, and the last resort, as OpenAPI responses of what is served at `path`:
    one a status, with an example for each code."""
    responses: dict[int | str, Any] = {}
    v2 = _speaks_v2(path)
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


def _speaks_v2(path: str) -> bool:
    """Is this where the Open Inference Protocol is spoken, which has errors of its own shape?"""
    return path == "/v2" or path.startswith("/v2/")


_HTTP_DETAILS = {
    404: "Nothing is served at this path. Images go to POST /predict; /docs lists everything.",
    405: "This path is served for another method; the header Allow lists which.",
}
_EXAMPLES: dict[type[Exception], str] = {
    MissingImage: "No image: send multipart/form-data with a file in the field 'img'.",
    BodyTooLarge: "The upload is larger than the 10,485,760 bytes that are allowed.",
    UploadTimeout: "The upload did not arrive within 30 seconds.",
    BadInference: "inputs.0.shape: Field required.",
    UnknownModel: "This server has the model 'cifar_resnet20_v1' in version '1' and no other.",
    UnknownHost: "This server does not answer requests for the host 'shoal.example.com'. Use its "
    "IP address or one of its names; its operator sets the names in SHOAL_ALLOWED_HOSTS.",
}
