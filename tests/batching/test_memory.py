"""Running out of the device's memory, and coming back from it."""

from __future__ import annotations

import pytest

from batching.memory import MemoryCap

BUCKETS = (1, 2, 4, 8)
PAUSE = MemoryCap.PAUSE


def test_all_is_allowed_until_it_runs_out() -> None:
    """Then the next smaller bucket, for a pause, and one more after each."""
    cap = MemoryCap(BUCKETS)
    assert cap.limit(0) == cap.limit(1e6) == 8
    cap.ran_out(8, 1e6)
    assert [cap.limit(1e6 + t * PAUSE) for t in (0, 0.9, 1.1, 9)] == [4, 4, 8, 8]
    cap.ran_out(4, 2e6)
    assert [cap.limit(2e6 + t * PAUSE) for t in (0, 1.1, 2.1)] == [2, 4, 8]


def test_running_out_again_on_the_way_up_doubles_the_pause() -> None:
    """Up to a limit; a failed probe costs a retry, and must become rare."""
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
def test_a_pause_at_the_top_forgets(failing: float, pause: int) -> None:
    """Back at the top after one pause; what then holds for another has recovered."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(8, failing)
    assert cap.limit(failing + (pause - 0.1) * PAUSE) == 4
    assert cap.limit(failing + (pause + 0.1) * PAUSE) == 8


def test_the_first_time_is_no_repetition() -> None:
    """Not even in the first seconds."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(2, 5.0)
    assert [cap.limit(5.0 + t * PAUSE) for t in (0.9, 1.1, 2.1, 3.1)] == [1, 2, 4, 8]


def test_running_out_at_once_at_half_the_size_is_the_same_time() -> None:
    """A retry in halves goes further down without a longer pause; and one that had been on its
    way at the old size does not raise the cap again."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(4, 0.1)
    cap.ran_out(8, 0.2)
    assert [cap.limit(0.2 + t * PAUSE) for t in (0, 1.1, 2.1)] == [2, 4, 8]


def test_what_has_held_on_the_way_up_still_holds() -> None:
    """A probe that fails at the top costs one bucket, however far down it began."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(2, 0.0)
    cap.ran_out(8, 3.5 * PAUSE)
    assert cap.limit(3.5 * PAUSE) == 4


def test_a_doubled_pause_is_forgotten_when_the_top_holds() -> None:
    """Ran out on the way up, recovered, and held: the next time counts as the first."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(8, 0.0)
    cap.ran_out(8, 1.5 * PAUSE)  # on the way up: twice the pause from now on
    assert cap.limit(3.0 * PAUSE) == 4
    cap.ran_out(8, 100 * PAUSE)
    assert [cap.limit((100 + t) * PAUSE) for t in (0.9, 1.1)] == [4, 8]


def test_the_smallest_bucket_stays() -> None:
    """Less than one item cannot be asked for."""
    cap = MemoryCap(BUCKETS)
    cap.ran_out(1, 0)
    assert cap.limit(0) == 1
