"""A load test: the images that the server accepts, and the search for the highest rate."""

from __future__ import annotations

import pytest

from shoal.load.load_test import find_max
from shoal.load.report import Run, summarize
from tests.shoal.load.fakes import samples_of


@pytest.mark.parametrize("capacity", [0.4, 3.0, 60.0, 1234.0])
def test_find_max_finds_the_highest_rate(capacity: float) -> None:
    """The search ends within five percent of the capacity, wherever it begins."""

    def measure(rate: float) -> Run:
        return summarize("x", rate, [samples_of([200 if rate <= capacity else 503])], 0.0, 1.0)

    tried = [run.offered for run in find_max(measure, 1.0)]
    good = [rate for rate in tried if rate <= capacity]
    assert len(tried) < 20
    assert not good if capacity < 1 else max(good) > capacity / 1.06
