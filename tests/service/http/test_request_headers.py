"""Request headers: which of two answers a client prefers."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from service.http.request_headers import MAX_ACCEPT, wants_text


def request_with(accept: str | None) -> Request:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "",
        "*/*",
        "image/png",
        "application/json, text/plain, */*",
        "text/plain;q=x",
        "text/html, */*;q=0.8",
        "text/plain" + "," * MAX_ACCEPT,
    ],
)
def test_wants_text_without_a_preference_is_the_default(accept: str | None) -> None:
    """A header that prefers neither JSON nor text gets the configured answer."""
    assert wants_text(request_with(accept), default=True)
    assert not wants_text(request_with(accept), default=False)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/plain", True),
        ("text/*", True),
        ("application/json;q=0.5, text/plain", True),
        ("application/json", False),
        ("application/*", False),
        ("application/json, */*;q=0.5", False),
        ("text/plain;q=0.5, */*", False),
    ],
)
def test_wants_text_follows_a_preference(accept: str, expected: bool) -> None:
    """A header that prefers one of the two gets it, whatever is configured."""
    assert wants_text(request_with(accept), default=True) is expected
    assert wants_text(request_with(accept), default=False) is expected
