"""A request must not become dearer unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.front_end import ENDPOINTS, measure, ratios

MOST = {"Shoal, raw body": 3.0, "Shoal, form": 3.0}
"""Times what FastAPI costs for nothing: about 2, and up to 2.5 on a busy machine; 5.5 to 6.4 before
decision 10, and 2.7 to 3.2 before decision 21."""


@pytest.mark.slow
def test_what_a_request_costs() -> None:
    """CPU of the front end against an endpoint that does nothing, in the same minute; the best of
    three rounds, since noise only ever adds."""
    found = asyncio.run(measure(rounds=3, seconds=0.7))
    assert set(MOST) < {endpoint.name for endpoint in ENDPOINTS}
    for name, most in MOST.items():
        assert min(ratios(found, name)) < most, name
