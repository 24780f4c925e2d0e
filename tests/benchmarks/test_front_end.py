"""A request must not become dearer unnoticed."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from benchmarks.front_end import ENDPOINTS, NOTHING, measure

MOST = {"Shoal, raw body": 2.5, "Shoal, form": 2.5}
"""Times what FastAPI costs for nothing: 1.3 to 1.8 since decision 33; 2.1 to 2.9 before."""

ROUNDS = 8


@pytest.mark.slow
async def test_what_a_request_costs() -> None:
    """CPU of the front end against an endpoint that does nothing, each at its least so far, since
    noise only adds; where that is too much, another round may find less."""
    endpoints = [endpoint for endpoint in ENDPOINTS if endpoint.name in {NOTHING.name, *MOST}]
    ratios: dict[str, float] = {}
    async with aclosing(measure(ROUNDS, seconds=0.5, endpoints=endpoints)) as measured:
        async for found in measured:
            least = {name: min(spent) for name, spent in found.items()}
            ratios = {name: least[name] / least[NOTHING.name] for name in MOST}
            if all(ratios[name] < most for name, most in MOST.items()):
                return
    pytest.fail(str(ratios))
