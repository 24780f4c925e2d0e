"""Decides what to do after an attempt to send a request: return the response, retry, or give up.

    200                           return the response
    429, 503 with Retry-After     wait as long as the header says and retry, if the timeout allows
    lost connection               retry immediately, but only once: servers close idle connections,
                                  and classifying an image twice is harmless
    anything else                 raise an error, because a retry would have the same result

This module does no I/O, and callers pass the clock. `shoal.client` sends the requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import httpx

from shoal.errors import NoPrediction, TimedOut, Unavailable, Unreachable
from shoal.prediction import error_from

MIN_TIMEOUT = 0.001
"""Minimum timeout of an attempt, in seconds."""
SPREAD = 0.25
"""Maximum additional wait, as a share of Retry-After. Each client adds a random wait, so that
clients with the same Retry-After do not all retry at the same time."""

Reply: TypeAlias = httpx.Response | httpx.RequestError | TimeoutError
"""The result of one attempt."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Instruction to wait and then to retry."""

    seconds: float
    """Number of seconds to wait."""


class Retry:
    """Decides what to do after each attempt to send one request."""

    def __init__(self, timeout: float, now: Callable[[], float], spread: float) -> None:
        """Creates the state of one request. The timeout begins immediately.

        Args:
            timeout: Maximum number of seconds for all attempts and the waits between them.
            now: Function that returns the current time of a monotonic clock, in seconds.
            spread: Random number from 0 to 1. The client waits `spread` x `SPREAD` x Retry-After
                in addition to Retry-After.
        """
        self._timeout = timeout
        self._now = now
        self._deadline = now() + timeout
        self._spread = spread
        self._broke_before = False

    @property
    def remaining(self) -> float:
        """Number of seconds until the deadline, at least `MIN_TIMEOUT`."""
        return max(self._deadline - self._now(), MIN_TIMEOUT)

    def after(self, reply: Reply) -> httpx.Response | Wait:
        """Returns the response if its status is 200, or the time to wait before the next attempt.

        Args:
            reply: Result of the last attempt.

        Raises:
            NoPrediction: Another attempt would also fail, or would exceed the timeout.
        """
        if isinstance(reply, httpx.Response):
            return reply if reply.status_code == 200 else self._after_error(error_from(reply))
        if isinstance(reply, TimeoutError | httpx.TimeoutException):
            raise TimedOut(
                f"No response arrived within {self._timeout:g} seconds. "
                "Try again, or increase the timeout"
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
                f"No server responds at {url}: {error}. Check that the server is running and that "
                "the URL is correct"
            )
        if self._broke_before:
            raise Unreachable(f"The connection to {url} was lost twice before a response: {error}")
        self._broke_before = True
        return Wait(0.0)
