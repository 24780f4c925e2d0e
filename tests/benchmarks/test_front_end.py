"""The cost of a request has an upper bound."""

from __future__ import annotations

import pytest

from benchmarks.front_end import CASES, NOTHING, measure

MAX_RATIOS = {"Shoal, raw body": 2.5, "Shoal, form": 2.5}
"""Cost relative to FastAPI that does nothing: 1.3 to 1.8 since decision 33; 2.1 to 2.9 before."""

ROUNDS = 8


@pytest.mark.slow
def test_front_end_cost_is_bounded() -> None:
    """CPU time per request stays below a multiple of an endpoint that does nothing.

    Other work on the machine only adds CPU time, so the minima of all rounds so far are compared,
    and another round follows as long as they exceed the bound.
    """
    cases = [case for case in CASES if case.name in {NOTHING.name, *MAX_RATIOS}]
    ratios: dict[str, float] = {}
    for results in measure(ROUNDS, seconds=0.5, cases=cases):
        minima = {name: min(costs) for name, costs in results.items()}
        ratios = {name: minima[name] / minima[NOTHING.name] for name in MAX_RATIOS}
        if all(ratios[name] < maximum for name, maximum in MAX_RATIOS.items()):
            return
    pytest.fail(str(ratios))
