"""Arrival times of an open loop."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.load.arrivals import constant, poisson


def test_arrivals_have_their_rate() -> None:
    """Poisson arrivals are independent and constant ones evenly spaced, both at the given rate."""
    random, even = poisson(100, 50, 1), constant(100, 50, 1)
    assert len(random) == pytest.approx(5000, rel=0.05) and len(even) == 5000
    assert random == sorted(random) and max(random) < 50 and max(even) < 50
    assert np.diff(even) == pytest.approx(0.01)
    assert np.std(np.diff(random)) == pytest.approx(0.01, rel=0.1)
