"""Converts responses of the service to plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from shoal.errors import NotShoal, Problem, problem_from

STAGE = re.compile(r"(\w+);dur=([0-9.]+)")
"""An entry of the header Server-Timing, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of an image."""

    class_: str
    probability: float
    """Softmax probability of `class_`."""
    probabilities: Mapping[str, float]
    """Softmax probability of every class, in the model's order."""
    model: str
    version: str
    timing: Mapping[str, float]
    """Seconds that the request spent in each stage: read, decode, queue, infer."""
    request_id: str


def prediction(response: httpx.Response) -> Prediction:
    """Returns the prediction in a 200 response of `/predict`. Raises NotShoal if there is none."""
    return _prediction(_body(response), response)


def predictions(response: httpx.Response) -> list[Prediction | Problem]:
    """Returns the results in a 200 response of `/predict/batch`, one for each image, in order.

    Raises:
        NotShoal: The response is not one of this service.
    """
    items = _body(response).get("predictions")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _not_shoal(response)
    return [_problem(i, response) if "code" in i else _prediction(i, response) for i in items]


def error_from(response: httpx.Response) -> Problem | NotShoal:
    """Returns the error in a response other than 200, from the service or from a proxy."""
    try:
        return problem_from(response.json(), retry_after(response))
    except (ValueError, LookupError, TypeError):
        not_shoal = _not_shoal(response)
    if (status := response.status_code) == 429 or status >= 500:
        fields = {"status": status, "code": "http_error", "title": response.reason_phrase}
        return problem_from(fields | {"detail": str(not_shoal)}, retry_after(response))
    return not_shoal


def retry_after(response: httpx.Response) -> float | None:
    """Returns the header Retry-After in seconds.

    None: the header is missing, or is a date, which this service never sends.
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
        f"{response.url} answers {response.status_code} {response.reason_phrase}, but not as Shoal "
        "does. Check the URL, and any proxy in front of the server"
    )
