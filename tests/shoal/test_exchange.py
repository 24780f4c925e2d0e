"""After a reply: take it, send again, or give up. Time stands, or is moved by hand."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from shoal.errors import (
    Failed,
    NoPrediction,
    NotShoal,
    Problem,
    Rejected,
    TimedOut,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from shoal.exchange import LEAST, SPREAD, Exchange, Reply, Wait
from tests.fakes import Clock

REQUEST = httpx.Request("POST", "http://shoal/predict")


def response(status: int, retry_after: str | None = None, code: str | None = "x") -> httpx.Response:
    """A problem of the service; with `code` None something else's page."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    told = {"status": status, "code": code, "title": "T", "detail": "D", "request_id": "R"}
    body: dict[str, Any] = {"json": told} if code else {"text": "<h1>no</h1>"}
    return httpx.Response(status, headers=headers, request=REQUEST, **body)


def error(kind: type[httpx.RequestError]) -> httpx.RequestError:
    return kind("said httpx", request=REQUEST)


def test_an_answer_is_taken() -> None:
    answer = response(200)
    assert Exchange(1, Clock(), 0).after(answer) is answer


@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        (response(503, "1"), 1.0),
        (response(503, "7"), 7.0),
        (response(429, "2"), 2.0),
        (response(503, "3", code=None), 3.0),  # a proxy's
        (error(httpx.ReadError), 0.0),
        (error(httpx.WriteError), 0.0),
        (error(httpx.RemoteProtocolError), 0.0),
    ],
)
def test_what_is_worth_sending_again(reply: Reply, wait: float) -> None:
    """A busy service, after as long as it says; a connection that broke, at once."""
    assert Exchange(10, Clock(), 0).after(reply) == Wait(wait)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (response(503), Unavailable),  # it does not say when
        (response(503, "Wed, 21 Oct 2026 07:28:00 GMT"), Unavailable),
        (response(503, "10"), Unavailable),  # there is no time left after that
        (response(503, code=None), Unavailable),
        (response(500, "1"), Failed),
        (response(504, "1"), Failed),
        (response(502, code=None), Failed),
        (response(401), Unauthorized),
        (response(400), Rejected),
        (response(413), Rejected),
        (response(404, code=None), NotShoal),
        (response(308, code=None), NotShoal),
        (error(httpx.ReadTimeout), TimedOut),
        (error(httpx.ConnectTimeout), TimedOut),
        (TimeoutError(), TimedOut),
        (error(httpx.ConnectError), Unreachable),
        (error(httpx.ProxyError), Unreachable),
    ],
)
def test_what_is_not(reply: Reply, kind: type[NoPrediction]) -> None:
    """Whatever would happen again, or come too late, fails at once."""
    with pytest.raises(NoPrediction) as caught:
        Exchange(10, Clock(), 0).after(reply)
    assert type(caught.value) is kind


def test_a_connection_breaks_twice() -> None:
    """Once may be a server that closes idle connections; twice is a broken server."""
    exchange = Exchange(10, Clock(), 0)
    assert exchange.after(error(httpx.ReadError)) == Wait(0)
    with pytest.raises(Unreachable, match="twice"):
        exchange.after(error(httpx.ReadError))


def test_nothing_is_sent_for_ever() -> None:
    """A service that is always busy is asked as long as the timeout lasts, and never after it."""
    clock = Clock()
    exchange = Exchange(10, clock, 0)
    for sent in range(3):
        assert exchange.left == 10 - 3 * sent
        assert exchange.after(response(503, "3")) == Wait(3)
        clock.now += 3
    with pytest.raises(Unavailable):
        exchange.after(response(503, "3"))
    clock.now = 10.5
    assert exchange.left == LEAST


def test_not_all_at_once() -> None:
    """Callers who are told the same number come back apart, and none too early."""
    waits = [Exchange(100, Clock(), spread).after(response(503, "4")) for spread in (0, 0.5, 1)]
    assert waits == [Wait(4), Wait(4 * (1 + SPREAD / 2)), Wait(4 * (1 + SPREAD))]


def test_the_problem_comes_whole() -> None:
    """All that the service said, for programs and for people."""
    with pytest.raises(Problem) as caught:
        Exchange(1, Clock(), 0).after(response(503, "2", code="queue_full"))
    problem = caught.value
    assert (problem.status, problem.code, problem.title) == (503, "queue_full", "T")
    assert (problem.detail, problem.request_id, problem.retry_after) == ("D", "R", 2)
    assert str(problem) == "D (queue_full)"
