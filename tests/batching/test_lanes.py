"""An engine of two lanes. A batch of up to 8 takes 1 s, in either."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from batching import Batcher, LatencyTable
from batching.arrivals import Arrivals
from batching.policy import Policy
from batching.timeline import Timeline
from tests.batching.fakes import FakeEngine, batcher, table, task
from tests.batching.virtual_time import virtual_time


def timeline(*handed: float) -> Timeline:
    """With a batch handed over at each of these times."""
    line = Timeline(table(), lanes=2)
    for now in handed:
        line.begin(8, now)
    return line


def policy() -> Policy:
    return Policy(table(margin=0.1), max_batch_size=8, lanes=2)


@pytest.mark.parametrize(
    ("handed", "now", "free_at", "done_at"),
    [
        ([], 0.5, 0.5, 0.5),
        ([0.0], 0.5, 0.5, 1.0),
        ([0.0, 0.3], 0.5, 1.0, 1.3),
        ([0.0, 0.3, 0.4], 0.5, 1.3, 2.0),
        ([0.0, 0.3, 0.4, 0.5], 0.5, 2.0, 2.3),
        ([0.0, 0.9], 1.2, 1.4, 1.9),  # late by 0.2, and expected to be by as much again
        ([0.0, 0.9], 2.5, 3.1, 4.0),
    ],
)
def test_when_lanes_are_free(
    handed: list[float], now: float, free_at: float, done_at: float
) -> None:
    """The next batch begins in the lane that is free first."""
    line = timeline(*handed)
    assert line.free_at(now) == pytest.approx(free_at)
    assert line.lanes(now).done_at == pytest.approx(done_at)


def test_what_is_to_be_computed_again_takes_one_lane() -> None:
    line = timeline(0.0)
    with line.reserve(4):
        assert line.free_at(0.5) == pytest.approx(1.0)
    assert line.free_at(0.5) == 0.5


def test_each_batch_teaches_its_own_time() -> None:
    """Whichever of two ends first; and one that waited behind them is timed from then on."""
    observed: list[tuple[int, float]] = []

    class RecordingTable(LatencyTable):
        def observe(self, size: int, seconds: float) -> None:
            observed.append((size, seconds))

    line = Timeline(RecordingTable({8: [1.0]}), lanes=2)
    first, second = line.begin(8, 0.0), line.begin(4, 0.5)
    third = line.begin(2, 0.6)
    line.end(second, 1.0, computed=True)
    line.end(first, 1.25, computed=True)
    assert line.free_at(1.25) == 1.25
    line.end(third, 1.75, computed=True)
    assert observed == [(4, 0.5), (8, 1.25), (2, 0.75)]


def test_a_free_lane_may_be_kept_for_the_first_that_ends() -> None:
    """Of two that compute beside it. With none free, or all, there is nothing to wait for."""
    line = Timeline(table(), lanes=3)
    ends = [line.lane_ends_at(0.7)]
    for handed in (0.0, 0.6, 0.7):
        line.begin(8, handed)
        ends.append(line.lane_ends_at(0.7))
    assert ends == [0.7, 1.0, 1.0, 0.7]


def test_a_lane_that_hangs_is_what_is_watched() -> None:
    """The other one goes on, and does not hide it."""
    line = timeline()
    hangs = line.begin(8, 0.0)
    for now in range(5):
        beside = line.begin(8, now)
        assert line.current is hangs
        line.end(beside, now + 1, computed=True)
    assert line.free_at(5.0) == 5.0


def test_busy_for_the_share_of_its_lanes() -> None:
    line = timeline()
    first, second = line.begin(8, 1.0), line.begin(8, 2.0)
    third = line.begin(8, 2.0)
    assert line.busy_seconds(3.0) == 0.5 + 1.0
    for flight in first, second:
        line.end(flight, 3.0, computed=True)
    line.end(third, 4.0, computed=True)
    assert line.busy_seconds(9.0) == 0.5 + 1.0 + 0.5


@pytest.mark.parametrize(
    ("line", "deadline", "late"),
    [
        ([], 1.09, 0.01),
        ([1.5] * 8, 1.6, None),  # beside the eight
        ([1.5] * 16, 2.1, 0.1),  # behind sixteen
        ([1.5] * 16, 2.3, None),
        ([1.5] * 16 + [2.3] * 8, 2.4, None),
    ],
)
def test_a_newcomer_is_laid_out_over_both(
    line: list[float], deadline: float, late: float | None
) -> None:
    assert policy().seconds_late(line, deadline, 0.0) == (late and pytest.approx(late))


@pytest.mark.parametrize(
    ("waiting", "at"), [(0, 1.0), (8, 1.0), (9, 2.0), (16, 2.0), (24, 2.0), (25, 3.0)]
)
def test_all_is_computed_when_both_are_done(waiting: int, at: float) -> None:
    p = policy()
    p.timeline.begin(8, 0.0)
    assert p.drained_at(waiting, 0.0) == at


def test_who_is_given_up_is_counted_over_both() -> None:
    """Sixteen who are due when one batch has run: two batches serve them, so nobody is given up;
    of another eight all would be late, in whatever order."""
    p = policy()
    assert p.form_batch([1.2] * 16, 0.0) == (0, 8)
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.2] * 8, 0.0) == (0, 8)
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.2] * 8, 0.0) == (8, 0)


def test_how_many_to_give_up_is_compared_over_both() -> None:
    """A batch of n takes 0.5 + 0.5 n. The first of four is given up so that two batches serve the
    rest, side by side; one lane would have served the last two."""
    for lanes, choice in ((1, (2, 2)), (2, (1, 1))):
        p = Policy(table(lambda size: 0.5 + 0.5 * size, margin=0.1), max_batch_size=8, lanes=lanes)
        assert p.form_batch([1.2, 1.3, 1.6, 1.7], 0.0) == choice


@pytest.mark.parametrize(("heard", "learned"), [(None, 3.0), (1.0, 1.0)])
def test_an_event_loop_that_hears_late_is_no_slow_engine(
    heard: float | None, learned: float
) -> None:
    """Two lanes that end while it is held agree with each other, and would be believed."""
    line = timeline()
    for _ in range(4):
        first, second = line.begin(8, 0.0), line.begin(8, 0.0)
        line.end(first, 3.0, computed=True, computed_at=heard)
        line.end(second, 3.0, computed=True, computed_at=heard)
    assert line.table.seconds(8) == pytest.approx(learned, rel=0.1)


def test_who_comes_next_in_a_lane_began_when_it_was_free() -> None:
    """Not when that was heard; and not before it was handed over."""
    line = timeline()
    first, second, third, late = (line.begin(8, now) for now in (0.0, 0.0, 0.5, 2.0))
    for done, flight in (1.0, first), (1.2, second):
        line.end(flight, 3.0, computed=True, computed_at=done)
    assert (third.begins, late.begins) == (1.0, 2.0)


@virtual_time
async def test_the_engine_says_when_it_was_done() -> None:
    """And is taken at its word, though the answer comes later."""
    loop = asyncio.get_running_loop()

    class Results(list[int]):
        computed_at = 0.0

    async def infer(items: Sequence[int]) -> Results:
        await asyncio.sleep(1.0)
        results = Results(items)
        results.computed_at = loop.time()
        await asyncio.sleep(2.0)
        return results

    async with Batcher(
        infer, latency=(learned := table()), max_batch_size=8, max_queue_size=9, clock=loop.time
    ) as served:
        for item in range(6):
            assert (await served.submit(item, 60.0)).infer_seconds == pytest.approx(3.0)
    assert learned.seconds(1) == pytest.approx(1.0)


@virtual_time
async def test_a_free_lane_gets_a_batch_at_once() -> None:
    """Whoever comes while one lane computes is computed in the other; who comes while both do waits
    for the first that ends."""
    engine = FakeEngine(lanes=2)
    async with batcher(engine, lanes=2, max_in_flight=2) as b:
        callers = [task(b, 0)]
        await asyncio.sleep(0.2)
        callers += [task(b, item) for item in range(1, 8)]
        await asyncio.sleep(0.2)
        assert (b.in_flight, b.queued) == (2, 0)
        callers += [task(b, 8), task(b, 9)]
        await asyncio.sleep(0.2)
        assert (b.in_flight, b.queued) == (2, 2)
        await asyncio.gather(*callers)

    assert engine.batches == [[0], list(range(1, 8)), [8, 9]]
    assert engine.began == [0, 0.2, 1]


class Steady(Arrivals):
    """One item every `gap` seconds, in a flood as many as can be."""

    def __init__(self, gap: float = 1e-9) -> None:
        super().__init__(memory=1.0)
        self._gap = gap

    def gap(self, now: float) -> float:
        return self._gap


def worth(arrivals: Arrivals) -> Policy:
    """Two lanes; 1, 2, 4 and 8 items take 0.6, 0.7, 0.9 and 1.3 s: eight are the most a second."""
    p = Policy(table(lambda size: 0.5 + 0.1 * size, margin=0.1), max_batch_size=8, lanes=2)
    p.arrivals = arrivals
    return p


@pytest.mark.parametrize(
    ("computing", "line", "patience", "due"),
    [
        ([], [9.0], 0.5, 0.5),  # nothing computes: at once
        ([1], [9.0], 0.5, 0.6),  # until the other lane ends
        ([8], [9.0] * 7, 0.5, 1.3),
        ([8], [9.0] * 8, 0.5, 0.5),  # worth it
        ([8], [1.5] * 3, 0.5, 1.5 - 0.9 * 1.1),  # a deadline is at stake
        ([8], [9.0], 2.0, 2.0),  # it may wait for company longer than that
        ([8, 1], [9.0], 0.5, 0.6 - 0.1 * (1.3 + 0.6) / 2),  # until the first of both, and early
    ],
)
def test_a_lane_beside_another_is_for_what_is_worth_it(
    computing: list[int], line: list[float], patience: float, due: float
) -> None:
    p = worth(Steady())
    for size in computing:
        p.timeline.begin(size, 0.0)
    assert p.due_at(line, patience, 0.5) == pytest.approx(due)


@pytest.mark.parametrize(("gap", "size"), [(1.0, 1), (0.15, 2), (0.075, 4), (0.06, 7), (0.01, 8)])
def test_what_keeps_up_with_a_lanes_share_of_what_arrives_is_worth_it(
    gap: float, size: int
) -> None:
    """About: six tenths of an item every two gaps, since there are two lanes."""
    p = worth(Steady(gap))
    p.timeline.begin(8, 0.0)
    due = [p.due_at([9.0] * waiting, 0.5, 0.5) for waiting in range(1, 9)]
    assert due == [1.3] * (size - 1) + [0.5] * (9 - size)


def test_what_computes_the_most_a_second_need_not_be_full() -> None:
    """Four take 1 s, five take 4 s: with four there is no company worth waiting for."""
    rises = table(lambda size: 1.0 if size <= 4 else 4.0, margin=0.1)
    p = Policy(rises, max_batch_size=8, lanes=2)
    p.arrivals = Steady()
    p.timeline.begin(4, 0.0)
    assert [p.due_at([9.0] * waiting, 0.5, 0.5) for waiting in (3, 4, 5)] == [1.0, 0.5, 0.5]


def test_a_lane_that_is_late_keeps_nobody_from_the_other() -> None:
    p = worth(Steady())
    p.timeline.begin(1, 0.0)
    assert p.due_at([9.0], 0.7, 0.7) == 0.7


@virtual_time
async def test_lanes_are_counted() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        batcher(FakeEngine(), lanes=0)
