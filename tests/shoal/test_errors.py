"""Exceptions of the client, and how an error of the service becomes one."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from shoal.errors import (
    Failed,
    NoPrediction,
    NotServed,
    NotShoal,
    Problem,
    Rejected,
    TimedOut,
    Unauthorized,
    Unavailable,
    Unreachable,
    problem_from,
)

FIELDS: dict[str, Any] = {
    "status": 503,
    "code": "queue_full",
    "title": "The queue is full",
    "detail": "The queue holds 1024 requests",
}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Rejected),
        (401, Unauthorized),
        (403, Rejected),
        (413, Rejected),
        (429, Unavailable),
        (499, Rejected),
        (500, Failed),
        (502, Failed),
        (503, Unavailable),
        (504, Failed),
    ],
)
def test_problem_from_chooses_the_class_by_status(status: int, kind: type[Problem]) -> None:
    """Callers can tell by the class whether the image, the key or the service is the reason."""
    assert type(problem_from(FIELDS | {"status": status})) is kind


def test_problem_from_keeps_all_fields() -> None:
    """The exception has every field of the answer, and its text is the detail and the code."""
    problem = problem_from(FIELDS | {"request_id": "42", "retry_after": 2, "instance": "/predict"})
    assert (problem.status, problem.code, problem.title) == (503, "queue_full", FIELDS["title"])
    assert (problem.detail, problem.request_id) == (FIELDS["detail"], "42")
    assert problem.retry_after == 2
    assert str(problem) == "The queue holds 1024 requests (queue_full)"


@pytest.mark.parametrize(
    ("fields", "header", "retry_after"),
    [({}, None, None), ({}, 3.0, 3.0), ({"retry_after": 2}, 3.0, 2), ({"retry_after": 0}, 3.0, 0)],
)
def test_problem_from_prefers_the_retry_after_of_the_fields(
    fields: dict[str, Any], header: float | None, retry_after: float | None
) -> None:
    """The value for one image counts before the one for the whole response."""
    problem = problem_from(FIELDS | fields, header)
    assert problem.retry_after == retry_after and problem.request_id == ""


@pytest.mark.parametrize(
    "fields",
    [
        [],
        "busy",
        None,
        {},
        {"status": 503},
        FIELDS | {"status": "busy"},
        FIELDS | {"status": None},
        FIELDS | {"retry_after": "soon"},
        FIELDS | {"retry_after": -1},
        FIELDS | {"retry_after": float("nan")},
        FIELDS | {"retry_after": float("inf")},
        *({name: FIELDS[name] for name in FIELDS if name != missing} for missing in FIELDS),
    ],
    ids=str,
)
def test_problem_from_rejects_other_fields(fields: Any) -> None:
    """JSON that is not a problem raises one of the documented exceptions."""
    with pytest.raises((LookupError, TypeError, ValueError)):
        problem_from(fields)


def test_problem_can_be_pickled() -> None:
    """A problem passes between processes with its class and its fields."""
    problem = problem_from(FIELDS | {"request_id": "42", "retry_after": 2})
    copy = pickle.loads(pickle.dumps(problem))  # noqa: S301  # made here
    assert type(copy) is Unavailable and vars(copy) == vars(problem) and str(copy) == str(problem)


def test_every_error_is_no_prediction() -> None:
    """One `except NoPrediction` catches all errors; `Rejected` includes `Unauthorized`."""
    kinds = (Unreachable, NotShoal, NotServed, TimedOut, Problem)
    assert all(kind.__bases__ == (NoPrediction,) for kind in kinds)
    assert all(kind.__bases__ == (Problem,) for kind in (Rejected, Unavailable, Failed))
    assert issubclass(Unauthorized, Rejected)
