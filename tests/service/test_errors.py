"""From exceptions to answers: what every row has in common."""

from __future__ import annotations

import pytest

from batching import DeadlineUnreachable, Draining, QueueFull
from service import errors


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (QueueFull("full", 0.2), "1"),
        (QueueFull("full", 2.1), "3"),
        (DeadlineUnreachable("late", 0.0), "1"),
        (Draining("bye", 0.0), "1"),
        (errors.NotReady(), "1"),
        (errors.MissingImage("none"), None),
    ],
)
def test_retry_after(error: Exception, seconds: str | None) -> None:
    """Every 503 says when to come back, in whole seconds and never at once."""
    response = errors.answer(errors.problem_for(error), error, "id")
    assert response.headers.get("retry-after") == seconds


@pytest.mark.parametrize("problem", [*errors.PROBLEMS.values(), errors.CUT_OFF])
def test_rows(problem: errors.Problem) -> None:
    """A code for programs, a title without a full stop, a detail in sentences."""
    assert problem.code.replace("_", "").isalpha() and problem.code.islower()
    assert not problem.title.endswith(".")
    assert problem.detail is None or problem.detail.endswith(".")
