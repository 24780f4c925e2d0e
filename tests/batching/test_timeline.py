"""When the engine is free, and what is learned from a batch that ends."""

from __future__ import annotations

import pytest

from batching.policy import Policy
from tests.batching.fakes import policy, steps, table


def test_timeline_reserves_time_for_computing_again() -> None:
    """Half of a failed batch is ahead of new items, also while the other half runs."""
    p = policy(steps)
    with p.timeline.reserve(4):
        assert p.timeline.free_at(0.0) == 2.5
        p.timeline.begin(4, 0.0)
        assert p.timeline.free_at(0.0) == 5.0
    assert p.timeline.free_at(0.0) == 2.5


@pytest.mark.parametrize(
    ("lanes", "now", "end"),
    [(1, 0.0, 8.0), (1, 2.0, 10.0), (2, 0.0, 7.0), (3, 0.0, 6.0), (3, 2.0, 7.5)],
)
def test_drained_by_is_an_upper_bound(lanes: int, now: float, end: float) -> None:
    """Batches behind the running ones follow one after another, then the reserved ones.
    The result is never earlier than that of planning them."""
    timeline = Policy(table(steps), 8, lanes).timeline
    for size in 1, 2, 1:
        timeline.begin(size, 0.0)
    with timeline.reserve(7):
        assert timeline.drained_by(now) == end
        assert timeline.drained_by(now) >= timeline.lanes(now).done_at


def test_timeline_learns_a_batch_without_its_wait() -> None:
    """A batch behind another begins when that one ends, so its own time is learned."""
    p = policy()
    first = p.timeline.begin(1, 0.0)
    second = p.timeline.begin(1, 0.8)
    assert p.timeline.free_at(0.8) == 2.0
    p.timeline.end(first, 1.2, computed=True)
    assert p.timeline.free_at(1.2) == pytest.approx(2.2)
    p.timeline.end(second, 2.2, computed=True)
    assert len(p.timeline) == 0
    assert p.table.seconds(1) == 1.0


def test_timeline_expects_a_late_batch_to_be_as_late_again() -> None:
    """A batch that is late by half a second is expected to take half a second more."""
    p = policy()
    p.timeline.begin(1, 0.0)
    assert p.timeline.free_at(1.5) == 2.0


def test_timeline_learns_nothing_from_a_failed_batch() -> None:
    """How long a failed batch took changes neither the table nor the margin."""
    p = policy()
    for n in range(9):
        p.timeline.end(p.timeline.begin(8, 10.0 * n), 10.0 * n + 5, computed=False)
    assert p.table.seconds(8) == 1.0
    assert p.timeline.margin.share == pytest.approx(0.1, rel=1e-9)


def test_timeline_learns_from_a_computed_batch() -> None:
    """Several batches that take twice as long change the table and the margin."""
    p = policy()
    for n in range(5):
        p.timeline.end(p.timeline.begin(8, 10.0 * n), 10.0 * n + 2, computed=True)
    assert p.table.seconds(8) == pytest.approx(2.0, rel=0.05)
    assert p.timeline.margin.share > 0.1


def test_timeline_learns_from_a_batch_in_time() -> None:
    """A batch in time lowers the margin and leaves the table, at any time of the clock."""
    p = policy()
    p.timeline.end(p.timeline.begin(8, 1000.0), 1001.0, computed=True)
    assert 0.09 < p.timeline.margin.share < 0.1
    assert p.table.seconds(8) == pytest.approx(1.0)


def test_busy_seconds_counts_each_second_once() -> None:
    """Each second counts once with any number of batches, including the one that runs."""
    p = policy()
    first = p.timeline.begin(1, 1.0)
    second = p.timeline.begin(1, 2.0)
    assert p.timeline.busy_seconds(2.5) == 1.5
    p.timeline.end(first, 3.0, computed=True)
    p.timeline.end(second, 4.0, computed=False)
    assert p.timeline.busy_seconds(10.0) == 3.0
    p.timeline.begin(1, 11.0)
    assert p.timeline.busy_seconds(12.0) == 4.0
