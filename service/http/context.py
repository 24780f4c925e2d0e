"""The state of one request: what its headers ask for, and what is known about it so far.

The server creates a context with each request and puts it into the ASGI scope; `context_of` finds
it there. On any other server, `context_of` creates it. Everything that one part of the service
leaves for another is an attribute here, and nothing else is added to the scope.
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
    "description": "Seconds within which the client needs the answer. The server's own limit is "
    "the maximum.",
}
"""OpenAPI's description of the header."""
MAX_ACCEPT = 1024
"""Maximum length of an Accept header that is parsed: each media range takes a microsecond."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
"""Request IDs that are accepted from clients."""


class RequestContext:
    """State of one request. All attributes may be read and set by every layer."""

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
        """Whether the whole body has arrived, so that reading it does not wait."""
        self.headers: dict[bytes, bytes] = {}
        """The first header of each name. Names are in lower case."""
        self.request_id = ""
        self.forwarded_hosts: list[bytes] = []
        """Values of X-Forwarded-Host that a trusted proxy sent."""
        self.timing: dict[str, float] = {}
        """Seconds that each stage took."""
        self.code: str | None = None
        """Code of the problem that the client gets instead of an answer."""
        self.disconnected = False
        """Whether the client has disconnected."""
        self.task: asyncio.Task[object] | None = None
        """The task to cancel when the client disconnects."""

    def read_headers(self, scope: Scope) -> None:
        """Set `headers` and `request_id` from the head of the request."""
        self.headers = dict(reversed(scope["headers"]))
        self.request_id = request_id(self.headers.get(b"x-request-id", b""))

    def cancel_on_disconnect(self) -> None:
        """Cancel the current task when the client disconnects, until the response starts.

        Only this project's server reports disconnects. Raises ClientDisconnect if the client has
        already disconnected.
        """
        if self.disconnected:
            raise ClientDisconnect
        self.task = asyncio.current_task()

    def disconnect(self) -> None:
        """Called by the server when the connection is lost."""
        self.disconnected = True
        if self.task is not None:
            self.task.cancel()

    def header(self, name: bytes) -> str | None:
        """The first header with this name, which is in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def content_length(self) -> int:
        """Length of the body in bytes; -1 if the head does not state it."""
        length = self.headers.get(b"content-length", b"")
        return int(length) if length.isdigit() else -1

    def timeout(self, maximum: float) -> float:
        """Seconds that the request may take: what the client asks for, and at most `maximum`.

        Raises BadTimeout.
        """
        value = self.header(b"x-request-timeout")
        if value is None:
            return maximum
        seconds = _number(value)
        if not 0 < seconds < math.inf:
            raise BadTimeout(
                f"{TIMEOUT_HEADER}: {value!r} is not a positive number of seconds. "
                "Send a number such as 0.25, or leave the header out."
            )
        return min(seconds, maximum)

    def prefers_text(self, default: bool) -> bool:
        """Whether the client prefers text/plain to JSON (RFC 9110, section 12.5.1).

        `default` is the result if the Accept header prefers neither of them, is absent, or is
        longer than `MAX_ACCEPT`.
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
        """`timing` as a Server-Timing header (https://www.w3.org/TR/server-timing/)."""
        return server_timing(self.timing)


def context_of(scope: Scope) -> RequestContext:
    """The context of the request with this scope, created if the server did not."""
    context: RequestContext | None = scope.get(CONTEXT)
    if context is None:
        context = scope[CONTEXT] = RequestContext()
        context.read_headers(scope)
    return context


def request_id(sent: bytes) -> str:
    """The request ID that the client sent if it is valid, or else a new one."""
    return sent.decode() if REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()


def server_timing(timing: dict[str, float]) -> str:
    """Seconds of each stage as a Server-Timing header, in milliseconds."""
    return ", ".join([f"{stage};dur={1000 * seconds:.3f}" for stage, seconds in timing.items()])


def _media_range(part: str) -> tuple[str, float]:
    """`text/plain;q=0.5` -> ("text/plain", 0.5). An invalid weight is 0 (RFC 9110)."""
    media_type, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media_type, _number(value)
    return media_type, 1.0


def _number(text: str) -> float:
    """`text` as a number; 0 if it is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0
