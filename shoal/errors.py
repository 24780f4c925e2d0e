"""Why there is no prediction, as exceptions whose messages say what happened and what to do.

NoPrediction
    Unreachable          nobody answers at this URL
    NotShoal             somebody does, and not as Shoal would
    TimedOut             no answer in the time allowed
    Problem              the service said no, and why: status, code, detail, request id
        Rejected         4xx: the same image will be rejected again
            Unauthorized 401: no key, or a wrong one
        Unavailable      429, 503: too busy, starting or stopping, for longer than one would wait
        Failed           any other 5xx
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NoPrediction(Exception):
    """There is no answer to this image."""


class Unreachable(NoPrediction):
    """Nobody answers at this URL, or the connection broke twice."""


class NotShoal(NoPrediction):
    """There is an answer, but not one of this service."""


class NotServed(NoPrediction):
    """The model cannot be served in this process."""


class TimedOut(NoPrediction):
    """No answer came in the time allowed."""


class Problem(NoPrediction):
    """The service's own words, RFC 9457 `application/problem+json`."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, code, title, detail, request_id, retry_after)
        self.status = status
        self.code = code
        """For programs: `bad_image`, `queue_full` and so on, as docs/http-api.md lists them."""
        self.title = title
        self.detail = detail
        """For people: what happened and what to do."""
        self.request_id = request_id
        """Under which the server's log has it."""
        self.retry_after = retry_after
        """Seconds after which trying again may help. None: the service does not say."""

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class Rejected(Problem):
    """4xx: the same image will be rejected again."""


class Unauthorized(Rejected):
    """401: no key, or a wrong one."""


class Unavailable(Problem):
    """429, 503: too busy, starting or stopping, and for longer than there was time to wait."""


class Failed(Problem):
    """Any other 5xx."""


def problem(told: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """The exception for a body of problem+json, or for what stands in a prediction's place."""
    status = int(told["status"])
    return _kind(status)(
        status,
        code=str(told["code"]),
        title=str(told["title"]),
        detail=str(told["detail"]),
        request_id=str(told.get("request_id", "")),
        retry_after=told.get("retry_after", retry_after),
    )


def _kind(status: int) -> type[Problem]:
    if status == 401:
        return Unauthorized
    if status in (429, 503):
        return Unavailable
    return Rejected if status < 500 else Failed
