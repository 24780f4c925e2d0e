"""Exceptions of the client. The message of an exception says what happened and what to do.

NoPrediction
    Unreachable          no server responds at this URL
    NotShoal             a server responds, but the server is not Shoal
    NotServed            the model cannot be served in this process
    TimedOut             no response arrived within the timeout
    Problem              the service returned an error: status, code, detail, request id
        Rejected         4xx: the same image will be rejected again
            Unauthorized 401: the API key is missing or wrong
        Unavailable      429, 503: the service rejected all attempts until the timeout expired,
                         because of the rate limit, or because it was busy, starting or stopping
        Failed           any other 5xx: the service failed
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class NoPrediction(Exception):
    """There is no prediction for this image."""


class Unreachable(NoPrediction):
    """No server responds at this URL, or the connection was lost twice."""


class NotShoal(NoPrediction):
    """A server responded, but not in the format of this service."""


class NotServed(NoPrediction):
    """The model cannot be served in this process."""


class TimedOut(NoPrediction):
    """No response arrived within the timeout."""


class Problem(NoPrediction):
    """The service returned an error (RFC 9457, `application/problem+json`)."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        """Creates the exception from the fields of the response.

        Args:
            status: HTTP status.
            code: Identifier of the error for programs, such as `bad_image` or `queue_full`.
            title: Short description of the error.
            detail: Text for people: what happened and what to do.
            request_id: Id of the request in the server's log. Empty: the server sent no id.
            retry_after: Number of seconds after which a retry may succeed. None: unknown.
        """
        super().__init__(status, code, title, detail, request_id, retry_after)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class Rejected(Problem):
    """4xx: the same image will be rejected again."""


class Unauthorized(Rejected):
    """401: the API key is missing or wrong."""


class Unavailable(Problem):
    """429, 503: the service rejected all attempts until the timeout expired.

    The reason is the rate limit, or that the service was busy, starting or stopping.
    """


class Failed(Problem):
    """Any other 5xx: the service failed."""


def problem_from(fields: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """Returns the exception for an error of the service.

    Args:
        fields: A problem+json body, or the error of one image in the response to a batch.
        retry_after: Number of seconds after which a retry may succeed, for `fields` without a
            `retry_after`. None: unknown.

    Raises:
        LookupError, TypeError, ValueError: `fields` does not describe a problem.
    """
    status = int(fields["status"])
    seconds = fields.get("retry_after", retry_after)
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(
            f"retry_after must be a finite number of seconds, at least 0, not {seconds}"
        )
    return _class_for(status)(
        status,
        code=str(fields["code"]),
        title=str(fields["title"]),
        detail=str(fields["detail"]),
        request_id=str(fields.get("request_id", "")),
        retry_after=seconds,
    )


def _class_for(status: int) -> type[Problem]:
    if status == 401:
        return Unauthorized
    if status in (429, 503):
        return Unavailable
    return Rejected if status < 500 else Failed
