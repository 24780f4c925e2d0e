"""What a request asks for in its headers: how soon it wants the answer, and in which form."""

from __future__ import annotations

import math

from starlette.requests import Request
from starlette.types import Scope

from service.errors import BadTimeout

TIMEOUT_HEADER = "X-Request-Timeout"
TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "description": "Seconds in which the answer is wanted, if less than the server's own limit",
}
"""The header, as OpenAPI describes it."""
MAX_ACCEPT = 1024
"""Characters of an Accept header that is read: each range in it takes a microsecond."""
HEADERS = "shoal.headers"
"""In a scope, the headers that are looked up."""


def timeout(request: Request, most: float) -> float:
    """Seconds that this request may take: its own wish, of which it gets `most` at most.

    Raises BadTimeout.
    """
    wish = header(request, b"x-request-timeout")
    if wish is None:
        return most
    seconds = _number(wish)
    if not 0 < seconds < math.inf:
        raise BadTimeout(
            f"{TIMEOUT_HEADER}: {wish!r} is not a positive number of seconds. "
            "Send a number such as 0.25, or leave the header out."
        )
    return min(seconds, most)


def header(request: Request, name: bytes) -> str | None:
    """The first header of that name, which is in lower case: as `request.headers` would say, where
    every look goes through all of them."""
    value = headers(request.scope).get(name)
    return None if value is None else value.decode("latin-1")


def headers(scope: Scope) -> dict[bytes, bytes]:
    """The first of each name, found once."""
    found: dict[bytes, bytes] | None = scope.get(HEADERS)
    if found is None:
        found = scope[HEADERS] = dict(reversed(scope["headers"]))
    return found


def declared(request: Request) -> int:
    """The length of the body; -1 where the request does not say."""
    length = headers(request.scope).get(b"content-length", b"")
    return int(length) if length.isdigit() else -1


def wants_text(request: Request, default: bool = False) -> bool:
    """Whether the client prefers text/plain to JSON.

    Args:
        request: Its `Accept` header is compared as in RFC 9110, section 12.5.1.
        default: The result where the header prefers neither, is absent, or is longer than
            `MAX_ACCEPT`.
    """
    accept = (header(request, b"accept") or "").lower()
    if len(accept) > MAX_ACCEPT or not ("text/" in accept or "application/" in accept):
        return default
    weights = dict(_media_range(part) for part in accept.split(","))
    anything = weights.get("*/*", 0.0)
    text = weights.get("text/plain", weights.get("text/*", anything))
    json = weights.get("application/json", weights.get("application/*", anything))
    return default if text == json else text > json


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
