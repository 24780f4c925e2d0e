"""What to do after a response, or after none: take it, send again, or give up.

    200                           the answer
    429, 503 with Retry-After     wait that long and send again, if time is left after that
    a connection that broke       send again at once, but once only: servers close idle connections,
                                  and to classify an image twice changes nothing
    anything else                 fail: the same would happen again

Pure: time is told, and nothing is sent here. `client` has the two that send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from shoal.errors import NoPrediction, TimedOut, Unavailable, Unreachable
from shoal.prediction import refusal

LEAST = 0.001
"""Seconds; the service is asked for no less."""
SPREAD = 0.25
"""Callers who are told the same Retry-After come back this share of it apart."""

Reply: TypeAlias = httpx.Response | httpx.RequestError | TimeoutError
"""What came of sending."""


@dataclass(frozen=True, slots=True)
class Wait:
    """So many seconds, and then send again."""

    seconds: float


class Exchange:
    """One request, from its first sending until it is answered or given up."""

    def __init__(self, timeout: float, now: Callable[[], float], spread: float) -> None:
        """`timeout`: seconds for all of it. `spread`: a random number from 0 to 1."""
        self._timeout = timeout
        self._now = now
        self._end = now() + timeout
        self._spread = spread
        self._broken = False

    @property
    def left(self) -> float:
        """Seconds in which the answer must come."""
        return max(self._end - self._now(), LEAST)

    def after(self, reply: Reply) -> httpx.Response | Wait:
        """The answer, which is a 200, or how long to wait. Raises NoPrediction."""
        if isinstance(reply, httpx.Response):
            return reply if reply.status_code == 200 else self._after_refusal(refusal(reply))
        if isinstance(reply, TimeoutError | httpx.TimeoutException):
            raise TimedOut(
                f"No answer came within {self._timeout:g} seconds. Try again, or wait longer"
            )
        if isinstance(reply, httpx.NetworkError | httpx.RemoteProtocolError):
            return self._after_break(reply)
        raise Unreachable(f"There is no answer to be had: {reply}")

    def _after_refusal(self, error: NoPrediction) -> Wait:
        if isinstance(error, Unavailable) and error.retry_after is not None:
            seconds = error.retry_after * (1 + SPREAD * self._spread)
            if self._now() + seconds < self._end:
                return Wait(seconds)
        raise error

    def _after_break(self, error: httpx.RequestError) -> Wait:
        url = error.request.url
        if isinstance(error, httpx.ConnectError):
            raise Unreachable(
                f"Nobody answers at {url}: {error}. Is the server running, and the URL right?"
            )
        if self._broken:
            raise Unreachable(f"{url} broke the connection twice before an answer came: {error}")
        self._broken = True
        return Wait(0.0)
