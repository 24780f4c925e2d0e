"""The best that our own policy can do on a trace, if its settings may be chosen once that is over.

A margin, fixed or learned as it is in earnest, and a share of the arrivals to keep up with: of a
grid of such pairs, the one with the most goodput among those that keep their promises. Where even
that misses, none of these pairs would have met; that others would is not ruled out.
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
    """Learns nothing."""

    def __init__(self, share: float) -> None:
        self.share = share

    def observe(self, predicted: float, actual: float) -> None:
        pass


@contextmanager
def fixed(margin: float | None, keeping_up: float) -> Iterator[None]:
    """Every batcher that is made and used within has these settings."""
    make = Margin if margin is None else lambda _: FixedMargin(margin)
    with (
        patch.object(timeline, "Margin", make),
        patch.object(policy, "KEEPING_UP", keeping_up),
    ):
        yield


def hindsight(attempt: Callable[[], tuple[Figures, float]], kept: float) -> dict[str, Any]:
    """`attempt` tells the figures of a run with the settings in force, and the share of promises
    that it kept, of which `kept` must be. Goodput 0 where no settings do."""
    best: dict[str, Any] = {"goodput": 0.0}
    for margin, keeping_up in product(MARGINS, KEEPING_UP):
        with fixed(margin, keeping_up):
            found, share = attempt()
        if share >= kept and found.goodput > best["goodput"]:
            best = {
                "goodput": found.goodput,
                "kept_share": share,
                "margin": margin,
                "keeping_up": keeping_up,
            }
    return best
