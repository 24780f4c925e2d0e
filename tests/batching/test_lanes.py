"""A batcher for an engine of two lanes. A batch of up to 8 takes 1 s in each lane."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from batching import Batcher, LatencyTable
from batching.policy import Arrivals, Policy
from batching.timeline import Timeline
from tests.batching.fakes import FakeEngine, batcher, table, task
from tests.batching.virtual_time import virtual_time


def timeline(*handed: float) -> Timeline:
    """A timeline with a batch handed over at each of these times."""
    batches = Timeline(table(), lanes=2)
    for now in handed:
        batches.begin(8, now)
    return batches


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
def test_timeline_predicts_when_lanes_are_free(
    handed: list[float], now: float, free_at: float, done_at: float
) -> None:
    """The next batch begins in the lane that is free first."""
    batches = timeline(*handed)
    assert batches.free_at(now) == pytest.approx(free_at)
    assert batches.lanes(now).done_at == pytest.approx(done_at)


def test_timeline_reserves_time_in_one_lane() -> None:
    """A batch that is to run again takes one lane."""
    batches = timeline(0.0)
    with batches.reserve(4):
        assert batches.free_at(0.5) == pytest.approx(1.0)
    assert batches.free_at(0.5) == 0.5


def test_timeline_learns_the_time_of_each_batch() -> None:
    """Whichever of two batches ends first, each time is its own. A batch that waited behind them is
    timed from its begin."""
    observed: list[tuple[int, float]] = []

    class RecordingTable(LatencyTable):
        def observe(self, size: int, seconds: float) -> None:
            observed.append((size, seconds))

    batches = Timeline(RecordingTable({8: [1.0]}), lanes=2)
    first, second = batches.begin(8, 0.0), batches.begin(4, 0.5)
    third = batches.begin(2, 0.6)
    batches.end(second, 1.0, computed=True)
    batches.end(first, 1.25, computed=True)
    assert batches.free_at(1.25) == 1.25
    batches.end(third, 1.75, computed=True)
    assert observed == [(4, 0.5), (8, 1.25), (2, 0.75)]


def test_lane_ends_at_is_the_first_end_while_a_lane_is_free() -> None:
    """If all lanes are free or none is, there is no end to wait for."""
    batches = Timeline(table(), lanes=3)
    ends = [batches.lane_ends_at(0.7)]
    for handed in (0.0, 0.6, 0.7):
        batches.begin(8, handed)
        ends.append(batches.lane_ends_at(0.7))
    assert ends == [0.7, 1.0, 1.0, 0.7]


def test_current_is_the_batch_of_a_lane_that_hangs() -> None:
    """A lane that hangs is watched while the other lane goes on."""
    batches = timeline()
    hangs = batches.begin(8, 0.0)
    for now in range(5):
        beside = batches.begin(8, now)
        assert batches.current is hangs
        batches.end(beside, now + 1, computed=True)
    assert batches.free_at(5.0) == 5.0


def test_busy_seconds_counts_the_share_of_busy_lanes() -> None:
    """With one of two lanes busy, half of the time counts."""
    batches = timeline()
    first, second = batches.begin(8, 1.0), batches.begin(8, 2.0)
    third = batches.begin(8, 2.0)
    assert batches.busy_seconds(3.0) == 0.5 + 1.0
    for flight in first, second:
        batches.end(flight, 3.0, computed=True)
    batches.end(third, 4.0, computed=True)
    assert batches.busy_seconds(9.0) == 0.5 + 1.0 + 0.5


@pytest.mark.parametrize(
    ("deadlines", "deadline", "late"),
    [
        ([], 1.09, 0.01),
        ([1.5] * 8, 1.6, None),  # beside the eight
        ([1.5] * 16, 2.1, 0.1),  # behind sixteen
        ([1.5] * 16, 2.3, None),
        ([1.5] * 16 + [2.3] * 8, 2.4, None),
    ],
)
def test_seconds_late_plans_batches_in_both_lanes(
    deadlines: list[float], deadline: float, late: float | None
) -> None:
    """The batches ahead of a new item run in both lanes."""
    assert policy().seconds_late(deadlines, deadline, 0.0) == (late and pytest.approx(late))


@pytest.mark.parametrize(
    ("waiting", "at"), [(0, 1.0), (8, 1.0), (9, 2.0), (16, 2.0), (24, 2.0), (25, 3.0)]
)
def test_drained_at_is_the_end_of_both_lanes(waiting: int, at: float) -> None:
    """All items are processed when both lanes are done."""
    p = policy()
    p.timeline.begin(8, 0.0)
    assert p.drained_at(waiting, 0.0) == at


def test_form_batch_gives_up_items_late_in_both_lanes() -> None:
    """Of sixteen items with time for one batch none is given up, since both lanes compute them.
    Another eight would all be late."""
    p = policy()
    assert p.form_batch([1.2] * 16, 0.0) == (0, 8)
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.2] * 8, 0.0) == (0, 8)
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.2] * 8, 0.0) == (8, 0)


def test_form_batch_compares_choices_in_both_lanes() -> None:
    """A batch of n takes 0.5 + 0.5 n. With two lanes the first of four items is given up, so that
    two batches compute the others; with one lane the first two are."""
    for lanes, choice in ((1, (2, 2)), (2, (1, 1))):
        p = Policy(table(lambda size: 0.5 + 0.5 * size, margin=0.1), max_batch_size=8, lanes=lanes)
        assert p.form_batch([1.2, 1.3, 1.6, 1.7], 0.0) == choice


@pytest.mark.parametrize(("heard", "learned"), [(None, 3.0), (1.0, 1.0)])
def test_timeline_learns_when_the_engine_was_done(heard: float | None, learned: float) -> None:
    """If the event loop is held while two batches end, their times agree with each other and would
    be believed. The engine reports when they were done."""
    batches = timeline()
    for _ in range(4):
        first, second = batches.begin(8, 0.0), batches.begin(8, 0.0)
        batches.end(first, 3.0, computed=True, computed_at=heard)
        batches.end(second, 3.0, computed=True, computed_at=heard)
    assert batches.table.seconds(8) == pytest.approx(learned, rel=0.1)


def test_timeline_begins_the_next_batch_when_the_lane_was_free() -> None:
    """The next batch began when the lane was free, not when the loop received that, and not before
    it was handed over."""
    batches = timeline()
    first, second, third, late = (batches.begin(8, now) for now in (0.0, 0.0, 0.5, 2.0))
    for done, flight in (1.0, first), (1.2, second):
        batches.end(flight, 3.0, computed=True, computed_at=done)
    assert (third.begins, late.begins) == (1.0, 2.0)


@virtual_time
async def test_batcher_uses_the_time_that_the_engine_reports() -> None:
    """The attribute `computed_at` of the results is used even if they arrive later."""
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
async def test_batcher_gives_a_free_lane_a_batch_at_once() -> None:
    """Items that arrive while one lane is busy are processed in the other. Items that arrive while
    both are busy wait for the first free lane."""
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
    """One item every `gap` seconds; by default far more than can be processed."""

    def __init__(self, gap: float = 1e-9) -> None:
        super().__init__(memory=1.0)
        self._gap = gap

    def gap(self, now: float) -> float:
        return self._gap


def two_lanes(arrivals: Arrivals) -> Policy:
    """A policy for two lanes in which 1, 2, 4 and 8 items take 0.6, 0.7, 0.9 and 1.3 s."""
    p = Policy(table(lambda size: 0.5 + 0.1 * size, margin=0.1), max_batch_size=8, lanes=2)
    p.arrivals = arrivals
    return p


@pytest.mark.parametrize(
    ("computing", "deadlines", "patience", "due"),
    [
        ([], [9.0], 0.5, 0.5),  # nothing computes: at once
        ([1], [9.0], 0.5, 0.6),  # until the other lane ends
        ([8], [9.0] * 7, 0.5, 1.3),
        ([8], [9.0] * 8, 0.5, 0.5),  # worth it
        ([8], [1.5] * 3, 0.5, 1.5 - 0.9 * 1.1),  # a deadline is at stake
        ([8], [9.0], 2.0, 2.0),  # the queue delay is longer than that
        ([8, 1], [9.0], 0.5, 0.6 - 0.1 * (1.3 + 0.6) / 2),  # until the first of both, and early
    ],
)
def test_due_at_gives_a_free_lane_only_worthwhile_batches(
    computing: list[int], deadlines: list[float], patience: float, due: float
) -> None:
    """While one lane computes, a batch for the other is due at once only if it is worthwhile."""
    p = two_lanes(Steady())
    for size in computing:
        p.timeline.begin(size, 0.0)
    assert p.due_at(deadlines, patience, 0.5) == pytest.approx(due)


@pytest.mark.parametrize(("gap", "size"), [(1.0, 1), (0.15, 2), (0.075, 4), (0.06, 7), (0.01, 8)])
def test_due_at_gives_a_free_lane_a_batch_that_keeps_up(gap: float, size: int) -> None:
    """A batch is worthwhile if it keeps up with 0.6 of a lane's share of the arrivals."""
    p = two_lanes(Steady(gap))
    p.timeline.begin(8, 0.0)
    due = [p.due_at([9.0] * waiting, 0.5, 0.5) for waiting in range(1, 9)]
    assert due == [1.3] * (size - 1) + [0.5] * (9 - size)


def test_due_at_gives_a_free_lane_the_most_efficient_batch() -> None:
    """Four items take 1 s and five take 4 s. With four there is nothing to wait for."""
    rises = table(lambda size: 1.0 if size <= 4 else 4.0, margin=0.1)
    p = Policy(rises, max_batch_size=8, lanes=2)
    p.arrivals = Steady()
    p.timeline.begin(4, 0.0)
    assert [p.due_at([9.0] * waiting, 0.5, 0.5) for waiting in (3, 4, 5)] == [1.0, 0.5, 0.5]


def test_due_at_does_not_wait_for_a_late_lane() -> None:
    """A lane that is late does not keep items from the free lane."""
    p = two_lanes(Steady())
    p.timeline.begin(1, 0.0)
    assert p.due_at([9.0], 0.7, 0.7) == 0.7


@virtual_time
async def test_batcher_rejects_zero_lanes() -> None:
    """At least one lane is required."""
    with pytest.raises(ValueError, match="at least 1"):
        batcher(FakeEngine(), lanes=0)
