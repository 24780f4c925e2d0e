"""From exceptions to answers: what every row has in common."""

from __future__ import annotations

import math
import re

import httpx
import pytest

from batching import DeadlineUnreachable, Draining, QueueFull
from service import errors
from service.app import create_app
from service.http import problems
from service.settings import Settings
from tests.fakes import FakeEngine


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (QueueFull("full", 0.2), "1"),
        (QueueFull("full", 2.1), "3"),
        (DeadlineUnreachable("late", 0.0), "1"),
        (DeadlineUnreachable("late", -math.inf), "1"),
        (DeadlineUnreachable("late", 59.1), "60"),
        (DeadlineUnreachable("late", 3600.0), "60"),
        (errors.RateLimited(6300.0), "60"),
        (QueueFull("full", math.inf), "60"),
        (QueueFull("full", math.nan), "60"),
        (errors.DecodeQueueFull(), "1"),
        (Draining("bye", 0.0), "1"),
        (errors.NotReady(), "1"),
        (errors.MissingImage("none"), None),
    ],
)
def test_retry_after(error: Exception, seconds: str | None) -> None:
    """Every 503 says when to try again: after 1 to 60 whole seconds, whatever was estimated."""
    response = problems.answer(problems.problem_for(error), error, "id")
    assert response.headers.get("retry-after") == seconds


@pytest.mark.parametrize("problem", [*problems.PROBLEMS.values(), problems.CUT_OFF])
def test_rows(problem: problems.Problem) -> None:
    """A code for programs, a title without a full stop, a detail in sentences."""
    assert problem.code.replace("_", "").isalpha() and problem.code.islower()
    assert not problem.title.endswith(".")
    assert problem.detail is None or problem.detail.endswith(".")


async def test_methods_of_every_route(engine: FakeEngine, settings: Settings) -> None:
    """`Allow` lists what the path is served for, be it by one route or by several."""

    async def nothing() -> None: ...

    app = create_app(settings, engine.load)
    for method in ("PATCH", "POST"):
        app.add_api_route("/twice", nothing, methods=[method])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        once, twice = await client.put("/predict"), await client.put("/twice")
        docs = (await client.get("/docs")).text
        files = await client.put(re.findall(r'src="(/[^"]+js)"', docs)[0])
    assert (once.status_code, once.headers["allow"]) == (405, "POST")
    assert (twice.status_code, twice.headers["allow"]) == (405, "PATCH, POST")
    assert files.status_code == 405
    assert twice.json()["code"] == "method_not_allowed"
