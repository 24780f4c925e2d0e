"""Request state: request IDs, timeouts, and which of two answers a client prefers."""

from __future__ import annotations

import asyncio
import math

import pytest
from starlette.requests import ClientDisconnect

from service.errors import BadTimeout
from service.http.context import MAX_ACCEPT, RequestContext, context_of, request_id


def context(**headers: str) -> RequestContext:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return context_of({"type": "http", "headers": raw})


def test_context_of_returns_the_same_context() -> None:
    """All layers share one context per request, whether or not the server created it."""
    scope = {"type": "http", "headers": [(b"a", b"1"), (b"a", b"2")]}
    first = context_of(scope)
    assert context_of(scope) is first
    assert first.header(b"a") == "1" and first.header(b"b") is None


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "line\n"])
def test_request_id_replaces_invalid_ones(sent: str) -> None:
    """An ID that could forge a log line or that is too long is replaced by a random one."""
    first, second = request_id(sent.encode()), request_id(sent.encode())
    assert sent not in (first, second) and first != second and len(first) == 32


def test_request_id_keeps_a_valid_one() -> None:
    """A valid ID of the client is used as it is."""
    assert context(x_request_id="trace/42=a").request_id == "trace/42=a"


@pytest.mark.parametrize(
    ("headers", "length"),
    [({}, -1), ({"content_length": "12"}, 12), ({"content_length": "x"}, -1)],
)
def test_content_length(headers: dict[str, str], length: int) -> None:
    """The length that the head states, and -1 if it states none."""
    assert context(**headers).content_length == length


@pytest.mark.parametrize(("sent", "seconds"), [(None, 5.0), ("0.25", 0.25), ("60", 5.0)])
def test_timeout_is_at_most_the_maximum(sent: str | None, seconds: float) -> None:
    """Clients can shorten the time of a request, and cannot extend it."""
    headers = {} if sent is None else {"x_request_timeout": sent}
    assert context(**headers).timeout(5.0) == seconds


@pytest.mark.parametrize("sent", ["0", "-1", "soon", "nan", "inf", ""])
def test_timeout_must_be_a_positive_number(sent: str) -> None:
    """Anything else is an error that quotes the value."""
    with pytest.raises(BadTimeout, match="X-Request-Timeout"):
        context(x_request_timeout=sent).timeout(math.inf)


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
def test_prefers_text_without_a_preference_is_the_default(accept: str | None) -> None:
    """A header that prefers neither JSON nor text gets the configured answer."""
    sent = context() if accept is None else context(accept=accept)
    assert sent.prefers_text(default=True)
    assert not sent.prefers_text(default=False)


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
def test_prefers_text_follows_a_preference(accept: str, expected: bool) -> None:
    """A header that prefers one of the two gets it, whatever is configured."""
    assert context(accept=accept).prefers_text(default=True) is expected
    assert context(accept=accept).prefers_text(default=False) is expected


def test_server_timing_is_in_milliseconds() -> None:
    """Each stage has its duration, in the order in which the stages ended."""
    sent = context()
    sent.timing |= {"read": 0.0001, "infer": 0.0025}
    assert sent.server_timing() == "read;dur=0.100, infer;dur=2.500"


async def test_disconnect_cancels_the_task() -> None:
    """From `cancel_on_disconnect` on, a disconnect cancels the task that called it."""
    sent = context()

    async def work() -> None:
        sent.cancel_on_disconnect()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    sent.disconnect()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_earlier_disconnect_is_an_error() -> None:
    """A client that has disconnected already gets no work done."""
    sent = context()
    sent.disconnect()
    with pytest.raises(ClientDisconnect):
        sent.cancel_on_disconnect()
