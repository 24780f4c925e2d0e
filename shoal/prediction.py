"""Converts HTTP responses of the service to predictions and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from shoal.errors import NotShoal, Problem, problem_from

STAGE = re.compile(r"(\w+);dur=([0-9.]+)")
"""Pattern of an entry in the header Server-Timing: a stage and its duration in milliseconds."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of an image, and the probabilities of all classes."""

    class_: str
    """Name of the most probable class."""
    probability: float
    """Softmax probability of `class_`."""
    probabilities: Mapping[str, float]
    """Softmax probability of every class, in the order of the model's classes."""
    model: str
    """Name of the model."""
    version: str
    """Version of the model."""
    timing: Mapping[str, float]
    """Number of seconds that the request spent in each stage: read, decode, queue, infer."""
    request_id: str
    """Id of the request in the server's log. Empty: the server sent no id."""


def prediction(response: httpx.Response) -> Prediction:
    """Returns the prediction in a response of `/predict` with status 200.

    Raises:
        NotShoal: The response is not from this service.
    """
    return _prediction(_body(response), response)


def predictions(response: httpx.Response) -> list[Prediction | Problem]:
    """Returns the results in a response of `/predict/batch` with status 200, in order.

    Raises:
        NotShoal: The response is not from this service.
    """
    items = _body(response).get("predictions")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _not_shoal(response)
    return [_problem(i, response) if "code" in i else _prediction(i, response) for i in items]


def error_from(response: httpx.Response) -> Problem | NotShoal:
    """Returns the error in a response whose status is not 200.

    The response may be from the service or from a proxy.
    """
    try:
        return problem_from(response.json(), retry_after(response))
    except (ValueError, LookupError, TypeError):
        not_shoal = _not_shoal(response)
    if (status := response.status_code) == 429 or status >= 500:
        fields = {"status": status, "code": "http_error", "title": response.reason_phrase}
        return problem_from(fields | {"detail": str(not_shoal)}, retry_after(response))
    return not_shoal


def retry_after(response: httpx.Response) -> float | None:
    """Returns the value of the header Retry-After, in seconds.

    Returns None if the header is missing or is a date. This service sends no dates.
    """
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        raise _not_shoal(response) from None
    if not isinstance(body, dict):
        raise _not_shoal(response)
    return body


def _prediction(body: Mapping[str, Any], response: httpx.Response) -> Prediction:
    stages = STAGE.findall(response.headers.get("Server-Timing", ""))
    try:
        return Prediction(
            class_=body["class"],
            probability=body["probability"],
            probabilities=body["probabilities"],
            model=body["model"]["name"],
            version=body["model"]["version"],
            timing={stage: float(milliseconds) / 1e3 for stage, milliseconds in stages},
            request_id=response.headers.get("X-Request-ID", ""),
        )
    except (LookupError, TypeError):
        raise _not_shoal(response) from None


def _problem(body: Mapping[str, Any], response: httpx.Response) -> Problem:
    try:
        return problem_from(body)
    except (ValueError, LookupError, TypeError):
        raise _not_shoal(response) from None


def _not_shoal(response: httpx.Response) -> NotShoal:
    return NotShoal(
        f"{response.url} responded with {response.status_code} {response.reason_phrase}, but this "
        "is not a response of Shoal. Check the URL, and any proxy in front of the server"
    )
