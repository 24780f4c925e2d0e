"""Finds the best result of Shoal's policy on a trace, with settings from a grid.

A trace is the list of arrival times of all requests. The trace is simulated with all combinations
of two settings in the grid. The first setting is the safety margin of predictions, as a share of
the predicted time. The margin is fixed, or learned as in Shoal. The second setting is `KEEPING_UP`
of `batching.policy`. The best result has the highest goodput, the number of requests completed in
time per second. A result is ignored if too few accepted requests were completed in time. If the
best result misses a target, all settings in the grid miss the target. Settings that are not in the
grid may still meet the target.
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
"""Margins in the grid. None: the margin is learned."""
KEEPING_UP = (0.0, 0.3, 0.6, 0.8, 1.0)
"""Values of `batching.policy.KEEPING_UP` in the grid."""


class FixedMargin(Margin):
    """A margin that does not learn."""

    def __init__(self, share: float) -> None:
        """
        Args:
            share: The margin, as a share of the predicted time.
        """
        self.share = share

    def observe(self, predicted: float, actual: float) -> None:
        pass


@contextmanager
def fixed(margin: float | None, keeping_up: float) -> Iterator[None]:
    """Applies settings to all batchers that are created and used within the block.

    Args:
        margin: The margin, as a share of the predicted time. None: the margin is learned.
        keeping_up: Value of `batching.policy.KEEPING_UP`.
    """
    make = Margin if margin is None else lambda _: FixedMargin(margin)
    with (
        patch.object(timeline, "Margin", make),
        patch.object(policy, "KEEPING_UP", keeping_up),
    ):
        yield


def hindsight(attempt: Callable[[], tuple[Figures, float]], kept: float) -> dict[str, Any]:
    """Returns the best result in the grid. Its goodput is 0 if no settings reach `kept`.

    Args:
        attempt: Function that simulates the trace with the current settings. The function
            returns the results, and the share of accepted requests that were completed in time.
        kept: Minimum share of accepted requests that must be completed in time.
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
