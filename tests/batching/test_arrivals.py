"""The average time between arrivals."""

from __future__ import annotations

import pytest

from batching.arrivals import Arrivals


def test_arrivals_follow_the_rate_and_decay() -> None:
    """The gap follows ten items per second, and grows when no more arrive."""
    arrivals = Arrivals(memory=2.0)
    assert arrivals.gap(0.0) == float("inf")
    for n in range(200):
        arrivals.record(n / 10)
    assert arrivals.gap(19.9) == pytest.approx(0.1, rel=0.05)
    assert arrivals.gap(24.0) > 0.5
