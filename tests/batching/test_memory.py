"""The memory cap: running out of the device's memory, and recovering."""

from __future__ import annotations

import pytest

from batching.memory import MemoryCap

BUCKETS = (1, 2, 4, 8)
PAUSE = MemoryCap.PAUSE


def test_limit_falls_by_a_bucket_when_memory_runs_out() -> None:
    """The limit rises by one bucket after each pause."""
    cap = MemoryCap(BUCKETS)
    assert cap.limit(0) == cap.limit(1e6) == 8
    cap.ran_out(8, 1e6)
    assert [cap.limit(1e6 + t * PAUSE) for t in (0, 0.9, 1.1, 9)] == [4, 4, 8, 8]
    cap.ran_out(4, 2e6)
    assert [cap.limit(2e6 + t * PAUSE) for t in (0, 1.1, 2.1)] == [2, 4, 8]


def test_pause_doubles_when_memory_runs_out_on_the_way_up() -> None:
    """Up to a maximum: each failed attempt costs a retry, so attempts become rare."""
    cap, now = MemoryCap(BUCKETS), 100.0
    pauses = []
    for _ in range(9):
        cap.ran_out(8, now)
        start = now
        while cap.limit(now) < 8:
            now += 1
        pauses.append(now - start)
    assert pauses == [10, 20, 40, 80, 160, 320, 640, 640, 640]


@pytest.mark.parametrize(("failing", "pause"), [(15.0, 2), (19.0, 2), (21.0, 1), (1000.0, 1)])
def test_pause_is_reset_after_a_pause_at_the_largest_bucket(failing: float, pause: int) -> None:
    """If the largest bucket held for a whole pause, the memory has recovered."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(8, failing)
    assert cap.limit(failing + (pause - 0.1) * PAUSE) == 4
    assert cap.limit(failing + (pause + 0.1) * PAUSE) == 8


def test_pause_does_not_double_the_first_time() -> None:
    """Not even in the first seconds of the clock."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(2, 5.0)
    assert [cap.limit(5.0 + t * PAUSE) for t in (0.9, 1.1, 2.1, 3.1)] == [1, 2, 4, 8]


def test_pause_does_not_double_for_the_halves_of_a_batch() -> None:
    """The halves of a batch that failed lower the limit without a longer pause. A batch that was in
    flight at the old size does not raise it."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(4, 0.1)
    cap.ran_out(8, 0.2)
    assert [cap.limit(0.2 + t * PAUSE) for t in (0, 1.1, 2.1)] == [2, 4, 8]


def test_limit_falls_by_one_bucket_from_where_it_rose_to() -> None:
    """A failure at the largest bucket costs one bucket, however low the limit was before."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(2, 0.0)
    cap.ran_out(8, 3.5 * PAUSE)
    assert cap.limit(3.5 * PAUSE) == 4


def test_doubled_pause_is_reset_when_the_largest_bucket_holds() -> None:
    """After that the next failure counts as the first."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(8, 1.5 * PAUSE)  # on the way up: twice the pause from now on
    assert cap.limit(3.0 * PAUSE) == 4
    cap.ran_out(8, 100 * PAUSE)
    assert [cap.limit((100 + t) * PAUSE) for t in (0.9, 1.1)] == [4, 8]


def test_limit_is_at_least_the_smallest_bucket() -> None:
    """A limit below one item is impossible."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(1, 0)
    assert cap.limit(0) == 1
