"""Results of a load test: numbers, the table, and the plot."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shoal.load.report import summarize, table
from tests.shoal.load.fakes import samples_of


def test_summarize_counts_the_measured_time_only() -> None:
    """Results cover the measured time only, and an error counts as an infinite latency."""
    run = summarize("x", 10.0, [samples_of([200] * 8 + [503, 0], 0.001)], 0.0, 1.0)
    assert run.statuses == {"failed": 1, "200": 8, "503": 1}
    assert run.achieved == 8
    assert run.latency["max"] == pytest.approx(0.008)
    assert run.latency["p50"] == pytest.approx(0.005)
    assert run.latency_of_all["p50"] == pytest.approx(0.006)
    assert run.latency_of_all["p99"] == math.inf
    assert json.loads(json.dumps(run.to_dict(), allow_nan=False))["latency_of_all"]["p99"] is None
    late = summarize("x", 10.0, [samples_of([200] * 10)], 0.5, 1.0)
    assert late.statuses == {"200": 5}


@pytest.mark.parametrize(
    ("changes", "limited"),
    [({}, False), ({"cpu_share": 0.95}, True), ({"send_lag": [0.01] * 9}, True)],
)
def test_report_says_when_the_generator_is_the_limit(
    changes: dict[str, Any], limited: bool
) -> None:
    """A generator that is too busy or too late is reported."""
    samples = samples_of([200] * 4)
    for name, value in changes.items():
        setattr(samples, name, value)
    run = summarize("x", 10.0, [samples], 0.0, 1.0)
    assert run.limited_by_generator is limited
    assert ("generator" in table([run])) is limited
