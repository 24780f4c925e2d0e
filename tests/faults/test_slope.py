"""The soak's verdict: it finds growth, and does not cry for what only wanders."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults.slope import OfBlock, slope

HOUR = np.arange(3600.0)


def wandering(count: int, remembers: float) -> NDArray[np.float64]:
    """So many series, (count, 3600), each of whose values keeps a share of the last; their spread
    is about 1."""
    noise = np.random.default_rng(1).normal(size=(len(HOUR), count)) * (1 - remembers**2) ** 0.5
    values = np.zeros_like(noise)
    for at in range(1, len(HOUR)):
        values[at] = remembers * values[at - 1] + noise[at]
    series: NDArray[np.float64] = values.T
    return series


@pytest.mark.parametrize("of_block", [np.mean, np.min])
@pytest.mark.parametrize("remembers", [0.0, 0.9, 0.97])
def test_slope_interval_has_its_coverage(remembers: float, of_block: OfBlock) -> None:
    """Of 200 series without growth, about 5 % get an interval without 0, also with correlated
    samples."""
    found = [slope(HOUR, series, of_block) for series in wandering(200, remembers)]
    wrong = sum(not one.low <= 0 <= one.high for one in found)
    assert wrong <= 200 * 0.10


def test_slope_finds_growth() -> None:
    """Growth of three units per hour is found in correlated noise."""
    found = slope(HOUR, wandering(1, 0.9)[0] + 3 * HOUR / 3600)
    assert 0 < found.low < 3 < found.high
    assert found.low < found.value < found.high


def test_slope_of_minima_finds_leaks_only() -> None:
    """Fewer idle moments are not growth; a task that leaks every quarter of an hour is."""
    random = np.random.default_rng(2)
    busy = 7.0 + random.integers(0, 17, len(HOUR)) * (random.random(len(HOUR)) < HOUR / 3600)
    assert slope(HOUR, busy).low > 1.0
    assert slope(HOUR, busy, np.min).value == pytest.approx(0)
    assert slope(HOUR, busy + HOUR // 900, np.min).low > 1.0


def test_slope_of_a_constant_is_zero() -> None:
    """A constant series has slope 0."""
    flat = slope(HOUR, np.full(len(HOUR), 30.0))
    assert [flat.value, flat.low, flat.high] == pytest.approx([0, 0, 0])


def test_slope_rejects_too_few_samples() -> None:
    """Fewer than 40 samples raise ValueError."""
    with pytest.raises(ValueError, match="40 are the least"):
        slope([0.0] * 39, [0.0] * 39)
