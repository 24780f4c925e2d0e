"""Decides what to do after an attempt to send a request: return the response, retry, or give up.

    200                           return the response
    429, 503 with Retry-After     wait that long and retry, if the timeout allows it
    broken connection             retry immediately, but only once: servers close idle connections,
                                  and classifying an image twice changes nothing
    anything else                 raise an error, since a retry would end the same way

This module does no I/O, and its callers pass in the clock. `shoal.client` sends the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from shoal.errors import NoPrediction, TimedOut, Unavailable, Unreachable
from shoal.prediction import error_from

MIN_TIMEOUT = 0.001
"""Seconds. The shortest timeout that is sent to the service."""
SPREAD = 0.25
"""Clients that receive the same Retry-After wait up to this share of it longer, each a different
time, so that they do not all return at once."""

Reply: TypeAlias = httpx.Response | httpx.RequestError | TimeoutError
"""The result of one attempt."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Retry after this many seconds."""

    seconds: float


class Retry:
    """The attempts to send one request."""

    def __init__(self, timeout: float, now: Callable[[], float], spread: float) -> None:
        """Starts the timeout.

        Args:
            timeout: Seconds for all attempts together, waiting included.
            now: Returns the current time in seconds, of a clock that never jumps.
            spread: Random number from 0 to 1: how much of `SPREAD` this client adds to Retry-After.
        """
        self._timeout = timeout
        self._now = now
        self._deadline = now() + timeout
        self._spread = spread
        self._broke_before = False

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, at least `MIN_TIMEOUT`."""
        return max(self._deadline - self._now(), MIN_TIMEOUT)

    def after(self, reply: Reply) -> httpx.Response | Wait:
        """Returns the response if its status is 200, or how long to wait before the next attempt.

        Raises:
            NoPrediction: Another attempt would not help, or would come too late.
        """
        if isinstance(reply, httpx.Response):
            return reply if reply.status_code == 200 else self._after_error(error_from(reply))
        if isinstance(reply, TimeoutError | httpx.TimeoutException):
            raise TimedOut(
                f"No answer came within {self._timeout:g} seconds. Try again, or allow more time"
            )
        if isinstance(reply, httpx.NetworkError | httpx.RemoteProtocolError):
            return self._after_broken_connection(reply)
        raise Unreachable(f"The request could not be sent: {reply}")

    def _after_error(self, error: NoPrediction) -> Wait:
        if isinstance(error, Unavailable) and error.retry_after is not None:
            seconds = error.retry_after * (1 + SPREAD * self._spread)
            if self._now() + seconds < self._deadline:
                return Wait(seconds)
        raise error

    def _after_broken_connection(self, error: httpx.RequestError) -> Wait:
        url = error.request.url
        if isinstance(error, httpx.ConnectError):
            raise Unreachable(
                f"No server answers at {url}: {error}. Is the server running, and the URL correct?"
            )
        if self._broke_before:
            raise Unreachable(f"{url} broke the connection twice before it answered: {error}")
        self._broke_before = True
        return Wait(0.0)
