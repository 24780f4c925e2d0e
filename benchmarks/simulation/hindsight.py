"""Hindsight: the best result of Shoal's policy on a trace if its settings are chosen afterwards.

The settings are a margin, fixed or learned as in the product, and the share of the arrivals that a
batch must keep up with. Of all pairs in a grid, the result is the one with the most goodput among
those that answer enough accepted requests in time. If it misses a target, no pair in the grid meets
it; other settings might.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest.mock import patch

from batching import policy, timeline
from batching.latency import Margin
from benchmarks.simulation.outcome import Figures

MARGINS = (None, 0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
"""None: learned."""
KEEPING_UP = (0.0, 0.3, 0.6, 0.8, 1.0)


class FixedMargin(Margin):
    """A margin that does not learn."""

    def __init__(self, share: float) -> None:
        """
        Args:
            share: The margin.
        """
        self.share = share

    def observe(self, predicted: float, actual: float) -> None:
        pass


@contextmanager
def fixed(margin: float | None, keeping_up: float) -> Iterator[None]:
    """Batchers that are made and used within the block have these settings."""
    make = Margin if margin is None else lambda _: FixedMargin(margin)
    with (
        patch.object(timeline, "Margin", make),
        patch.object(policy, "KEEPING_UP", keeping_up),
    ):
        yield


def hindsight(attempt: Callable[[], tuple[Figures, float]], kept: float) -> dict[str, Any]:
    """The best result in the grid; goodput 0 if no settings reach `kept`.

    Args:
        attempt: Runs the trace with the current settings; returns the figures, and the share of
            accepted requests that were answered in time.
        kept: Minimum of that share.
    """
    best: dict[str, Any] = {"goodput": 0.0}
    for margin, keeping_up in product(MARGINS, KEEPING_UP):
        with fixed(margin, keeping_up):
            result, share = attempt()
        if share >= kept and result.goodput > best["goodput"]:
            best = {
                "goodput": result.goodput,
                "kept_share": share,
                "margin": margin,
                "keeping_up": keeping_up,
            }
    return best
