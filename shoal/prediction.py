"""Answers of the service, read into plain data. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from shoal.errors import NotShoal, Problem, problem

STAGE = re.compile(r"(\w+);dur=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of an image."""

    class_: str
    probability: float
    """Softmax, of `class_`."""
    probabilities: Mapping[str, float]
    """Softmax of every class, in the model's order."""
    model: str
    version: str
    timing: Mapping[str, float]
    """Seconds that the request spent in each stage: read, decode, queue, infer."""
    request_id: str


def prediction(response: httpx.Response) -> Prediction:
    """What /predict answered with a 200. Raises NotShoal."""
    return _prediction(_body(response), response)


def predictions(response: httpx.Response) -> list[Prediction | Problem]:
    """What /predict/batch answered with a 200: one a file, in their order. Raises NotShoal."""
    items = _body(response).get("predictions")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _not_shoal(response)
    return [_problem(i, response) if "code" in i else _prediction(i, response) for i in items]


def refusal(response: httpx.Response) -> Problem | NotShoal:
    """What a response other than 200 says, be it the service's or that of a proxy before it."""
    try:
        return problem(response.json(), retry_after(response))
    except (ValueError, LookupError, TypeError):
        unlike = _not_shoal(response)
    if (status := response.status_code) == 429 or status >= 500:
        told = {"status": status, "code": "http_error", "title": response.reason_phrase}
        return problem(told | {"detail": str(unlike)}, retry_after(response))
    return unlike


def retry_after(response: httpx.Response) -> float | None:
    """Seconds; None where the header is missing or a date, which this service never sends."""
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
        return problem(body)
    except (ValueError, LookupError, TypeError):
        raise _not_shoal(response) from None


def _not_shoal(response: httpx.Response) -> NotShoal:
    return NotShoal(
        f"{response.url} answers {response.status_code} {response.reason_phrase}, and not as Shoal "
        "would. Check the URL, and what stands between here and there"
    )
