"""The watchdog: when an engine is stalled or dead."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from batching.latency import LatencyTable
from batching.timeline import InFlight
from batching.watchdog import FLOOR, STALLED_FLOOR, Watchdog


def batch(predicted: float) -> InFlight:
    table = LatencyTable({1: [predicted] * 3})
    return InFlight(size=1, handed=0.0, begins=0.0, seconds=predicted, table=table)


def dead_at(watchdog: Watchdog, checks: Iterable[float], current: InFlight) -> float | None:
    """The first check at which the engine is dead; None if it never is."""
    return next((now for now in checks if watchdog.check(current, now)), None)


@pytest.mark.parametrize(
    ("predicted", "dead"),
    [(0.001, FLOOR + 1), (0.09, FLOOR + 1), (0.2, 21), (1.0, 101)],
)
def test_engine_is_dead_after_a_hundred_times_the_predicted_time(
    predicted: float, dead: float
) -> None:
    """But never in less than the minimum number of seconds."""
    assert dead_at(Watchdog(), range(1000), batch(predicted)) == dead


@pytest.mark.parametrize(
    ("predicted", "stalled"),
    [(0.001, STALLED_FLOOR + 1), (0.5, STALLED_FLOOR + 1), (0.6, 7), (1.0, 11)],
)
def test_engine_is_stalled_after_ten_times_the_predicted_time(
    predicted: float, stalled: float
) -> None:
    """But never in less than the minimum number of seconds, and not with another batch or none."""
    watchdog, current = Watchdog(), batch(predicted)
    for now in range(100):
        assert watchdog.stalled(current) == (now > stalled)
        watchdog.check(current, now)
    assert not watchdog.stalled(batch(predicted)) and not watchdog.stalled(None)


def test_engine_of_a_process_that_was_stopped_is_not_stalled() -> None:
    """However long the process was stopped, the batch has a few seconds to end afterwards."""
    watchdog, current = Watchdog(), batch(0.01)
    for now in 0, 1, 3600, 3601:
        watchdog.check(current, now)
        assert not watchdog.stalled(current)


def test_watchdog_times_each_batch_separately() -> None:
    """Neither batches in a row nor a time without batches make an engine dead."""
    watchdog = Watchdog()
    for number in range(20):
        assert dead_at(watchdog, range(9 * number, 9 * number + 9), batch(0.01)) is None
    assert not any(watchdog.check(None, 1000 + second) for second in range(100))
    assert dead_at(watchdog, range(1100, 1110), batch(0.01)) is None


def test_watchdog_does_not_count_time_without_checks() -> None:
    """A process that was stopped for an hour does not take its engine for dead."""
    watchdog, current = Watchdog(), batch(0.01)
    assert dead_at(watchdog, [0, 1, 2, 3600, 3601, 3602], current) is None
    assert dead_at(watchdog, range(3603, 3700), current) == 3607
