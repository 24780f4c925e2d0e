"""Keeps the state of one request, which the layers of the service share.

This project's server creates a `RequestContext` for each request and stores it in the ASGI scope.
`context_of` returns that context, or creates one if another ASGI server runs the application. To
pass a value to another layer, a layer sets an attribute of the context, not a key of the scope.
"""

from __future__ import annotations

import asyncio
import math
import os
import re

from starlette.requests import ClientDisconnect
from starlette.types import Scope

from service.errors import BadTimeout

CONTEXT = "shoal.context"
"""Key of the context in a scope."""
TIMEOUT_HEADER = "X-Request-Timeout"
TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds within which the client needs the response. Values above the server's "
    "own timeout have no effect.",
}
"""Description of the timeout header for OpenAPI."""
MAX_ACCEPT = 1024
"""Maximum number of characters of an Accept header that is parsed. Parsing one media range takes a
microsecond."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
"""Pattern of the request IDs that clients may send."""


class RequestContext:
    """State of one request. Every layer may read and set its attributes."""

    __slots__ = (
        "body_complete",
        "code",
        "disconnected",
        "forwarded_hosts",
        "headers",
        "request_id",
        "task",
        "timing",
    )

    def __init__(self) -> None:
        self.body_complete = False
        """Whether the whole body has arrived. If so, reading the body does not wait."""
        self.headers: dict[bytes, bytes] = {}
        """The headers, with names in lower case. If a name occurs twice, the first value counts."""
        self.request_id = ""
        """The ID of the request, which the response and the log contain."""
        self.forwarded_hosts: list[bytes] = []
        """Values of X-Forwarded-Host that a trusted proxy sent."""
        self.timing: dict[str, float] = {}
        """Duration of each stage of the request, in seconds."""
        self.code: str | None = None
        """Code of the error that the request caused. None: no error so far."""
        self.disconnected = False
        """Whether the client has disconnected."""
        self.task: asyncio.Task[object] | None = None
        """The task to cancel when the client disconnects. None: no task is canceled."""

    def read_headers(self, scope: Scope) -> None:
        """Set `headers` and `request_id` from the headers in the scope."""
        self.headers = dict(reversed(scope["headers"]))
        self.request_id = request_id(self.headers.get(b"x-request-id", b""))

    def cancel_on_disconnect(self) -> None:
        """Cancel the current task if the client disconnects before the response starts.

        The task is canceled only by this project's server, because other servers do not call
        `disconnect`. Raises ClientDisconnect if the client has already disconnected.
        """
        if self.disconnected:
            raise ClientDisconnect
        self.task = asyncio.current_task()

    def disconnect(self) -> None:
        """Record the disconnect, and cancel `task`. The server calls this method."""
        self.disconnected = True
        if self.task is not None:
            self.task.cancel()

    def header(self, name: bytes) -> str | None:
        """Return the first header named `name` (in lower case), or None if the header is
        missing."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def content_length(self) -> int:
        """Length of the body in bytes, or -1 if the request has no valid header Content-Length."""
        length = self.headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else -1

    def timeout(self, maximum: float) -> float:
        """Return the timeout of the request in seconds: the timeout header, but at most `maximum`.

        Without the header, the timeout is `maximum`. Raises BadTimeout if the header is invalid.
        """
        value = self.header(b"x-request-timeout")
        if value is None:
            return maximum
        seconds = _number(value)
        if not 0 < seconds < math.inf:
            raise BadTimeout(
                f"{TIMEOUT_HEADER}: {value!r} is not a positive number of seconds. "
                "Send a number such as 0.25, or omit the header."
            )
        return min(seconds, maximum)

    def prefers_text(self, default: bool) -> bool:
        """Whether the client prefers text/plain to JSON (RFC 9110, section 12.5.1).

        Returns `default` if the Accept header prefers neither of the two, is missing, or is longer
        than `MAX_ACCEPT`.
        """
        accept = (self.header(b"accept") or "").lower()
        if len(accept) > MAX_ACCEPT or not ("text/" in accept or "application/" in accept):
            return default
        weights = dict(_media_range(part) for part in accept.split(","))
        anything = weights.get("*/*", 0.0)
        text = weights.get("text/plain", weights.get("text/*", anything))
        json = weights.get("application/json", weights.get("application/*", anything))
        return default if text == json else text > json

    def server_timing(self) -> str:
        """Format `timing` as a Server-Timing header (https://www.w3.org/TR/server-timing/)."""
        return server_timing(self.timing)


def context_of(scope: Scope) -> RequestContext:
    """Return the context of the request with this scope. Creates the context if it is missing."""
    context: RequestContext | None = scope.get(CONTEXT)
    if context is None:
        context = scope[CONTEXT] = RequestContext()
        context.read_headers(scope)
    return context


def request_id(sent: bytes) -> str:
    """Return the request ID that the client sent, or a new ID if it is missing or invalid."""
    return sent.decode() if REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()


def server_timing(timing: dict[str, float]) -> str:
    """Format durations in seconds as a Server-Timing header, in milliseconds."""
    return ", ".join([f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in timing.items()])


def _media_range(part: str) -> tuple[str, float]:
    """Parse a media range: `text/plain;q=0.5` gives ("text/plain", 0.5).

    A missing weight counts as 1 (RFC 9110, section 12.4.2), and an invalid weight as 0.
    """
    media_type, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media_type, _number(value)
    return media_type, 1.0


def _number(text: str) -> float:
    """Convert `text` to a number. Returns 0 if `text` is not a number."""
    try:
        return float(text)
    except ValueError:
        return 0.0
