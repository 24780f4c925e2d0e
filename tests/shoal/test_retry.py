"""Retry: return a response, retry, or give up. Time is virtual."""

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
from shoal.retry import MIN_TIMEOUT, SPREAD, Reply, Retry, Wait
from tests.fakes import Clock

REQUEST = httpx.Request("POST", "http://shoal/predict")


def response(status: int, retry_after: str | None = None, code: str | None = "x") -> httpx.Response:
    """Returns an error of the service, or with `code` None a page of something else."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    fields = {"status": status, "code": code, "title": "T", "detail": "D", "request_id": "R"}
    body: dict[str, Any] = {"json": fields} if code else {"text": "<h1>no</h1>"}
    return httpx.Response(status, headers=headers, request=REQUEST, **body)


def error(kind: type[httpx.RequestError]) -> httpx.RequestError:
    return kind("a reason", request=REQUEST)


def test_retry_returns_a_response_of_status_200() -> None:
    """A response with status 200 is returned as it is."""
    answer = response(200)
    assert Retry(1, Clock(), 0).after(answer) is answer


@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        (response(503, "1"), 1.0),
        (response(503, "7"), 7.0),
        (response(429, "2"), 2.0),
        (response(503, "3", code=None), 3.0),  # from a proxy
        (error(httpx.ReadError), 0.0),
        (error(httpx.WriteError), 0.0),
        (error(httpx.RemoteProtocolError), 0.0),
    ],
)
def test_retry_waits_as_long_as_the_reply_requires(reply: Reply, wait: float) -> None:
    """Retries follow Retry-After; after a broken connection they are immediate."""
    assert Retry(10, Clock(), 0).after(reply) == Wait(wait)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (response(503), Unavailable),  # without Retry-After
        (response(503, "Wed, 21 Oct 2026 07:28:00 GMT"), Unavailable),
        (response(503, "10"), Unavailable),  # the timeout would have ended
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
def test_retry_gives_up_when_another_attempt_would_not_help(
    reply: Reply, kind: type[NoPrediction]
) -> None:
    """Errors that would recur, and retries that would come too late, raise immediately."""
    with pytest.raises(NoPrediction) as caught:
        Retry(10, Clock(), 0).after(reply)
    assert type(caught.value) is kind


def test_retry_gives_up_after_two_broken_connections() -> None:
    """The first broken connection is retried, the second raises Unreachable."""
    retry = Retry(10, Clock(), 0)
    assert retry.after(error(httpx.ReadError)) == Wait(0)
    with pytest.raises(Unreachable, match="twice"):
        retry.after(error(httpx.ReadError))


def test_retry_ends_with_its_timeout() -> None:
    """A service that stays busy is retried until the timeout ends, and not afterwards."""
    clock = Clock()
    retry = Retry(10, clock, 0)
    for sent in range(3):
        assert retry.remaining == 10 - 3 * sent
        assert retry.after(response(503, "3")) == Wait(3)
        clock.now += 3
    with pytest.raises(Unavailable):
        retry.after(response(503, "3"))
    clock.now = 10.5
    assert retry.remaining == MIN_TIMEOUT


def test_retry_spreads_clients_with_the_same_retry_after() -> None:
    """Clients with the same Retry-After wait different times, none of them shorter."""
    waits = [Retry(100, Clock(), spread).after(response(503, "4")) for spread in (0, 0.5, 1)]
    assert waits == [Wait(4), Wait(4 * (1 + SPREAD / 2)), Wait(4 * (1 + SPREAD))]


def test_retry_raises_a_problem_with_all_its_fields() -> None:
    """The exception has every field of the error that the service sent."""
    with pytest.raises(Problem) as caught:
        Retry(1, Clock(), 0).after(response(503, "2", code="queue_full"))
    problem = caught.value
    assert (problem.status, problem.code, problem.title) == (503, "queue_full", "T")
    assert (problem.detail, problem.request_id, problem.retry_after) == ("D", "R", 2)
    assert str(problem) == "D (queue_full)"
