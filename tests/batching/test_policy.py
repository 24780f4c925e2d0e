"""The rules, one at a time. The table takes 1 s per batch of up to 8 unless it says otherwise,
and the margin is a tenth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batching.arrivals import Arrivals
from batching.latency import LatencyTable
from batching.policy import ACCEPTED_MARGIN, MAX_CHOICES, Policy
from batching.timeline import Lanes
from tests.batching.fakes import table

SOON = 1e-9


def policy(
    seconds: Callable[[int], float] = lambda size: 1.0,
    buckets: Sequence[int] = (1, 2, 4, 8),
    margin: float = 0.1,
) -> Policy:
    return Policy(table(seconds, buckets, margin), max_batch_size=max(buckets))


def steps(size: int) -> float:
    """A device on which every item costs: 0.5 s and 0.5 s more for each."""
    return 0.5 + 0.5 * size


def flood(p: Policy, now: float, per_second: float) -> None:
    """As if items had arrived at this rate for a long time."""
    for n in range(round(100 * per_second), -1, -1):
        p.arrivals.record(now - n / per_second)


# Who is refused


@pytest.mark.parametrize(
    ("line", "deadline", "late"),
    [
        ([], 1.11, None),
        ([], 1.09, 0.01),
        ([], 0.5, 0.6),
        ([9.0] * 7, 1.2, None),
        ([9.0] * 8, 1.2, None),  # it would go first, and the eighth has time
        ([9.0] * 8, 9.0, None),
        ([1.5] * 8, 2.1, 0.1),  # second batch: 2 s and the margin
        ([1.5] * 8, 2.3, None),
    ],
)
def test_a_newcomer_must_make_it_with_the_margin(
    line: list[float], deadline: float, late: float | None
) -> None:
    """The answer is by how much it would be late."""
    assert policy().seconds_late(line, deadline, 0.0) == (late and pytest.approx(late))


def test_what_is_in_flight_comes_first() -> None:
    """Its remaining time, and all of what was handed over behind it."""
    p = policy()
    p.timeline.begin(8, 0.0)
    p.timeline.begin(8, 0.9)
    assert p.seconds_late([], 0.9 + 2.1 * 1.1 + SOON, 0.9) is None
    assert p.seconds_late([], 0.9 + 2.1 * 1.1 - 0.1, 0.9) == pytest.approx(0.1)


def test_a_newcomer_must_not_make_another_late() -> None:
    """It would be in time itself, as the first of the line; the last one would not."""
    p = policy()
    assert p.seconds_late([1.5] * 8, 1.2, 0.0) is not None
    assert p.seconds_late([1.5] * 7 + [2.3], 1.2, 0.0) is None


def test_who_is_lost_anyway_refuses_nobody() -> None:
    """Those ahead that can no longer make it will be cut, and take no time."""
    assert policy().seconds_late([0.5] * 80, 1.2, 0.0) is None


def test_joining_makes_the_batch_longer_for_its_first() -> None:
    """Four together take 2.5 s, for which the first has no time: so the fourth goes behind."""
    p = policy(steps, (1, 2, 3, 4))
    assert p.seconds_late([2.3] * 3, 3.7, 0.0) is None
    assert p.seconds_late([2.3] * 3, 3.2, 0.0) == pytest.approx(0.1)
    assert p.seconds_late([2.8] * 3, 3.2, 0.0) is None


def test_who_waits_is_laid_out_as_it_will_be_cut() -> None:
    """With half the margin: eight who have that much, but not all of it, are expected to be
    computed, and so the newcomer to wait for them."""
    p = policy(steps, (1, 2, 3, 4, 5, 6, 7, 8))
    full = [4.5 * 1.06] * 8
    assert p.form_batch(full, 0.0) == (0, 8)
    assert p.seconds_late(full, (4.5 + 1.0) * 1.1 + SOON, 0.0) is None
    assert p.seconds_late(full, (4.5 + 1.0) * 1.1 - 0.1, 0.0) == pytest.approx(0.1)


def test_who_is_behind_the_newcomer_keeps_its_whole_margin() -> None:
    """The newcomer would leave the last of nine with half of it only."""
    p = policy()
    assert p.seconds_late([9.0] * 7 + [2.0 * 1.06], 2.0, 0.0) is not None
    assert p.seconds_late([9.0] * 7 + [2.0 * 1.11], 2.0, 0.0) is None


def test_under_a_flood_a_batch_too_small_to_keep_up_is_not_opened() -> None:
    """The newcomer could be computed alone, but far more could be answered in that time."""
    p = policy(lambda size: 1.0 + 0.1 * size)
    p.timeline.begin(8, 0.0)
    alone, together = (1.8 + 1.1) * 1.1 + SOON, (1.8 + 1.8) * 1.1 + SOON
    assert p.seconds_late([], alone, 0.0) is None
    flood(p, 0.0, per_second=100)
    assert p.seconds_late([], alone, 0.0) == pytest.approx(0.7 * 1.1)
    assert p.seconds_late([], together, 0.0) is None
    assert p.seconds_late([together], together, 0.0) is None


def test_a_flood_does_not_demand_what_cannot_be_gathered() -> None:
    """A batch must be gathered and computed within one timeout, or nobody would be let in."""
    p = policy(steps)
    flood(p, 0.0, per_second=100)
    assert p.seconds_late([], 1.2, 0.0) is None


@pytest.mark.parametrize(
    ("gap", "timeout", "needed"),
    [
        # 0.6 / gap items a second are to be kept up with, of at most n / (0.5 + 0.5 n)
        (0.7, 99.0, 1),  # 0.86: one alone does 1
        (0.5, 99.0, 2),  # 1.2: two do 1.33
        (0.4, 99.0, 3),  # 1.5: three do just that
        (0.355, 99.0, 6),  # 1.69: six do 1.71, five 1.67
        (0.1, 99.0, 8),  # 6: none does, and the best is the largest
        # within the timeout n can be gathered and computed: n gap + 1.1 (0.5 + 0.5 n)
        (0.1, 6.0, 8),  # 5.75 for eight
        (0.1, 5.7, 7),
        (0.2, 6.06, 7),  # 5.8 for seven, 6.55 for eight
        (0.4, 6.06, 3),  # five could be gathered, but three keep up
        (0.1, 1.1, 1),  # not even one, but less than one is none
    ],
)
def test_the_smallest_batch_worth_opening(gap: float, timeout: float, needed: int) -> None:
    """Worked out by hand: what keeps up with the arrivals, or the best that can be gathered. The
    newcomer's time allows no batch at all, so it is late by what the one worth opening takes."""

    class Steady(Arrivals):
        def gap(self, now: float) -> float:
            return gap

    p = policy(steps, range(1, 9))
    p.arrivals = Steady(1.0)
    busy = timeout / 1.1 - 0.9  # not enough is left for one, which takes 1
    p.timeline.begin(1, 100.0).seconds = busy
    late = (busy + steps(needed)) * 1.1 - timeout
    assert p.seconds_late([], 100.0 + timeout, 100.0) == pytest.approx(late)


def test_who_waits_is_not_lost_for_being_too_few() -> None:
    """What is worth opening is asked of newcomers only: who was let in before the flood came is
    computed, and so is in the way of the newcomer."""
    p = policy(steps, range(1, 9))
    flood(p, 0.0, per_second=100)
    assert p.seconds_late([1.06], 5.5 * 1.1 - 0.1, 0.0) == pytest.approx(0.1)


def test_a_trickle_opens_any_batch() -> None:
    """As long as small batches keep up, nobody is refused for the sake of larger ones."""
    p = policy(lambda size: 1.0 + 0.1 * size)
    flood(p, 0.0, per_second=0.8)
    p.timeline.begin(8, 0.0)
    assert p.seconds_late([], (1.8 + 1.1) * 1.1 + SOON, 0.0) is None


def test_an_engine_unheard_of_is_tried_whatever_it_took() -> None:
    """A while after the last batch, one that waits alone is let in and computed; not two."""
    p = policy()
    p.timeline.end(p.timeline.begin(1, 0.0), 1.0, computed=True)
    assert p.seconds_late([], 2.4, 1.9) is not None
    assert p.seconds_late([], 2.6, 2.1) is None
    assert p.seconds_late([2.6], 2.6, 2.1) is not None
    assert p.seconds_late([], 2.1, 2.1) is not None, "not without any time at all"
    assert p.form_batch([2.6], 2.1) == (0, 1)
    assert p.form_batch([2.1], 2.1) == (1, 0)
    assert p.form_batch([2.0, 2.3, 2.6], 2.1) == (2, 1)
    assert p.form_batch([2.4], 1.9) == (1, 0)
    p.timeline.begin(1, 2.1)
    assert p.seconds_late([], 2.6, 2.2) is not None, "one at a time"


# When a batch leaves


def test_an_idle_engine_waits_for_nobody() -> None:
    assert policy().due_at([99.0], 7.0, 7.0) == 7.0


def test_the_next_batch_is_closed_just_before_the_engine_is_free() -> None:
    """By the margin of what is in flight, and no earlier."""
    p = policy()
    p.timeline.begin(1, 5.0)
    assert p.due_at([99.0], 5.2, 5.2) == pytest.approx(5.9)
    assert p.due_at([99.0], 5.95, 5.95) <= 5.95


def test_a_batch_that_cannot_grow_is_due() -> None:
    """It is as large as allowed, or as its first can afford, or its first is lost."""
    p = policy(steps)
    p.timeline.begin(1, 0.0)
    assert p.due_at([99.0] * 7, 0.0, 0.0) > 0.5
    assert p.due_at([99.0] * 8, 0.0, 0.0) == 0.0
    assert p.due_at([2.8, 99.0], 0.0, 0.0) == 0.0
    assert p.due_at([1.0], 0.0, 0.0) == 0.0


def test_patience_ends_where_a_deadline_is_at_stake() -> None:
    """Early enough for a batch of one more."""
    p = policy(steps)
    assert p.due_at([99.0], 3.0, 0.0) == 3.0
    assert p.due_at([4.0], 3.0, 0.0) == pytest.approx(4.0 - 1.5 * 1.1)
    assert p.due_at([4.0, 99.0], 3.0, 0.0) == pytest.approx(4.0 - 2.5 * 1.1), "the first's"


# How large it is


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([99.0] * 3, (0, 3)),
        ([99.0] * 20, (0, 8)),
        ([0.9, 0.95, 99.0], (2, 1)),  # 1 s at least: two are lost
        ([1.05, 99.0, 99.0], (0, 1)),  # one still makes it, but only alone
        ([0.5] * 3, (3, 0)),
        ([1.0], (0, 1)),  # just
        ([2.3, 9.0, 9.0, 9.0], (0, 3)),  # a fourth would make the first late
    ],
)
def test_a_batch_is_as_large_as_its_deadlines_allow(
    line: list[float], expected: tuple[int, int]
) -> None:
    """And who can no longer make it is cut."""
    assert policy(steps, (1, 2, 3, 4, 5, 6, 7, 8)).form_batch(line, 0.0) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([1.05] + [9.0] * 7, (0, 1)),  # all make it, the first alone
        ([1.05] + [3.0] * 2, (0, 1)),
        ([1.05] + [3.0] * 3, (0, 1)),  # one is lost either way: the promise made first is kept
        ([1.05] + [3.0] * 4, (1, 4)),  # one now, or two later
        ([1.05] * 3 + [3.0] * 4, (3, 4)),
        ([1.02] + [3.0] * 3, (0, 1)),  # without its margin, it is no more lost than that
        ([1.02] + [3.0] * 5, (1, 4)),  # two are lost, or three
        ([1.05] * 5 + [1.6] * 2 + [3.0] * 4, (7, 4)),
    ],
)
def test_as_few_as_possible_are_given_up(line: list[float], expected: tuple[int, int]) -> None:
    """A full batch that leaves some behind, if a small one for their sake would lose more."""
    assert policy(steps, (1, 2, 3, 4, 5, 6, 7, 8)).form_batch(line, 0.0) == expected


def late_if(p: Policy, line: Sequence[float], given_up: int, start: float) -> int:
    """How many are late at time 0 if so many are given up, said as plainly as possible."""
    clock, late, rest = start, given_up, list(line[given_up:])
    first = True
    while rest:
        trusted = rest[0] / (1 + ACCEPTED_MARGIN * p.timeline.margin.share)
        fitting = [n for n in range(1, 9) if p.table.seconds(n) <= trusted - clock]
        if fitting or first:
            size = p.table.best(min(max(fitting, default=1), len(rest)))
            clock += p.table.seconds(size)
        else:
            late, size = late + 1, 1
        del rest[:size]
        first = False
    return late


@given(
    st.lists(st.integers(5, 130), min_size=1, max_size=16),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0.0, 0.05, 0.6]),
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([0.1, 1.0]),
)
@example([5] * 12 + [6, 7, 7, 9], 1, 0.05, 0.1, 0.1)  # as many as are compared
def test_no_other_choice_would_lose_fewer(
    tenths: list[int], in_flight: int, fixed: float, per_item: float, margin: float
) -> None:
    """Of all numbers at the head of a line that could be given up, the least of those that leave
    the fewest late."""
    p = policy(lambda size: fixed + per_item * size, margin=margin)
    p.timeline.begin(in_flight, 0.0)
    start = p.timeline.free_at(0.0)
    line = sorted(0.0997 * n for n in tenths)
    hopeless = sum(deadline < start + p.table.seconds(1) for deadline in line)
    lost, size = p.form_batch(line, 0.0)
    assert lost + size <= len(line)
    assert (size == 0) == (lost == len(line)) == (hopeless == len(line))
    if size:
        late = [late_if(p, line, n, start) for n in range(hopeless, len(line))]
        assert late_if(p, line, lost, start) == min(late)
        trusted = line[hopeless] / (1 + ACCEPTED_MARGIN * p.timeline.margin.share)
        if p.table.largest_within(trusted - start) < min(8, len(line) - hopeless):
            assert lost == hopeless + late.index(min(late))


def test_of_a_long_line_a_few_choices_are_compared() -> None:
    """Of 33 every third: that the first 20 go is not tried, but that 21 do, and then 25 are late in
    all as well; with the first alone it would be 26."""
    p = policy(steps, range(1, 9))
    assert p.form_batch([1.05] * 20 + [4.8] * 13, 0.0) == (21, 8)


def test_padding_that_is_dear_is_avoided() -> None:
    """Of five, four now and one with the next: eight would take twice as long."""
    assert policy(lambda size: 0.1 + 0.6 * size).form_batch([99.0] * 5, 0.0) == (0, 4)
    assert policy(lambda size: 1.0 + 0.02 * size).form_batch([99.0] * 5, 0.0) == (0, 5)


def test_a_newcomer_may_be_who_is_left_over_by_a_padded_bucket() -> None:
    """Behind eight, four of five take 2.5 s and then the fifth its own, though all had time for a
    batch of eight. The margin is as much as the time itself."""
    p = policy(lambda size: 0.1 + 0.6 * size, margin=1.0)
    line = [(4.9 + 4.9) * 1.5 + SOON] * 12
    assert p.seconds_late(line, 16.0, 0.0) == pytest.approx((4.9 + 2.5 + 0.7) * 2 - 16.0)


def test_memory_caps_a_batch_and_the_prediction() -> None:
    """Nine take three batches of four, not two of eight."""
    p = policy()
    p.memory.ran_out(8, 0.0)
    assert p.form_batch([99.0] * 9, 0.0) == (0, 4)
    assert p.seconds_late([9.0] * 8, 9.0, 0.0) is None
    assert p.seconds_late([2.25] * 8, 2.25, 0.0) is not None
    assert p.drained_at(9, 0.0) == 3.0


def test_what_waits_behind_a_batch_in_flight_is_cut_by_when_it_would_begin() -> None:
    """A slot is free, the engine is not."""
    p = policy()
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.5, 9.0], 0.5) == (1, 1)


def test_a_long_line_is_judged_soon() -> None:
    """Thousands who wait, lost or not, keep the event loop for a moment only."""
    lookups = CountingTable({n: [1.0 + 0.02 * n] for n in (1, 2, 4, 8, 16, 32, 64)})
    p = Policy(lookups, 64)
    waiting = {"late": [0.5] * 8000, "in time": [1.05 + 0.01 * n for n in range(8000)]}
    for name, deadlines in waiting.items():
        lookups.count = 0
        p.seconds_late(deadlines, 1000.0, 0.0)
        assert lookups.count < 8000 / 10, name
        lookups.count = 0
        p.form_batch(deadlines, 0.0)
        assert lookups.count <= 8000 * (MAX_CHOICES + 1), name


# Shortcuts


class CountingTable(LatencyTable):
    """Counts how often the largest batch within some time is looked up."""

    count = 0

    def largest_within(self, seconds: float) -> int:
        self.count += 1
        return super().largest_within(seconds)


class WithoutShortcuts(Policy):
    """Plans every batch."""

    def _surely_in_time(
        self, deadlines: Sequence[float], deadline: float, cap: int, now: float
    ) -> bool:
        return False

    def _skip_full_batches(
        self, deadlines: Sequence[float], lanes: Lanes, cap: int, now: float
    ) -> tuple[int, Lanes]:
        return 0, lanes


DEVICES = {
    "usual": {1: [1.0], 2: [1.2], 4: [1.5], 8: [2.0]},
    "cliff": {1: [1.0], 2: [1.2], 4: [1.5], 8: [9.0]},
    "quick alone": {1: [0.2], 2: [1.2], 4: [1.5], 8: [2.0]},
}


def at_the_end(waiting: list[float], **other: Any) -> example:
    """An example: a newcomer behind all of them, to one lane, at the beginning."""
    usual = {"more": 0.0, "taken": 0, "kind": "usual", "flooded": False}
    return example(waiting=waiting, size=8, lanes=1, owed=0, at=0.0, place=60, **usual | other)


@given(
    waiting=st.lists(st.floats(0, 60), max_size=60),
    more=st.floats(0, 10),
    size=st.integers(1, 8),
    lanes=st.integers(1, 3),
    taken=st.integers(0, 3),
    kind=st.sampled_from([*DEVICES]),
    flooded=st.booleans(),
    owed=st.sampled_from([0, 4]),
    at=st.sampled_from([0.0, 1.7]),
    place=st.integers(0, 60),
)
# Time for 66 batches or for four, and two that wait: more must not be counted than there are.
@at_the_end([133.0] * 16)
@at_the_end([8.2] * 16)
# The first has time for two, not for eight.
@at_the_end([1.5] + [5.1] * 15)
# One alone is soon computed, but does not keep up with what arrives.
@at_the_end([2.8], taken=3, kind="quick alone", flooded=True)
# Those ahead have time for small batches only, and these take longer in all.
@at_the_end([2.5, 3.3, 3.6, 4.3, 5.0, 5.1, 5.4, 6.4, 6.9, 7.5], more=0.8, taken=2)
def test_the_short_cut_says_the_same(
    waiting: list[float],
    more: float,
    size: int,
    lanes: int,
    taken: int,
    kind: str,
    flooded: bool,
    owed: int,
    at: float,
    place: int,
) -> None:
    """Of a newcomer at the end or in the middle of any line, to any number of lanes, busy or not,
    in time or late, with half of a batch to be computed again or without."""
    results = []
    for rules in Policy, WithoutShortcuts:
        p = rules(LatencyTable(DEVICES[kind]), size, lanes)
        if flooded:
            flood(p, 0.0, 10.0)
        for _ in range(taken):
            p.timeline.begin(1, 0.0)
        line = sorted(waiting)
        deadline = [*line, line[-1] + more if line else more][min(place, len(line))]
        with p.timeline.reserve(owed) if owed else nullcontext():
            results.append(p.seconds_late(line, deadline, at))
    assert results[0] == results[1]


def test_a_line_with_time_to_spare_is_not_laid_out() -> None:
    """Neither when it is short, nor while the engine is busy; where time is short it is."""
    lookups = CountingTable({n: [1.0] for n in (1, 2, 4, 8)})
    p = Policy(lookups, 8)
    p.timeline.begin(8, 0.0)
    for deadlines in [], [50.0], [50.0] * 15:
        assert p.seconds_late(deadlines, 60.0, 0.0) is None
    assert not lookups.count
    p.seconds_late([50.0] * 15, 3.0, 0.0)
    assert lookups.count


@pytest.mark.parametrize("deadline", [0.5, 2e3])
def test_who_is_far_ahead_is_not_asked_one_by_one(deadline: float) -> None:
    """Neither of a thousand full batches each, nor of those who are lost."""
    lookups = CountingTable({n: [1.0] for n in (1, 2, 4, 8)})
    assert Policy(lookups, 8).seconds_late([deadline] * 8000, 3e3, 0.0) is None
    assert lookups.count <= 3


# What is in flight


def test_what_must_be_computed_again_is_expected() -> None:
    """Half of a failed batch is ahead of newcomers, also while the other half is computed."""
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
def test_all_is_done_at_the_latest(lanes: int, now: float, end: float) -> None:
    """One batch after another behind those that are computed, then what is owed; what is late is
    expected to be late by as much again. Never sooner than by laying it out."""
    timeline = Policy(table(steps), 8, lanes).timeline
    for size in 1, 2, 1:
        timeline.begin(size, 0.0)
    with timeline.reserve(7):
        assert timeline.drained_by(now) == end
        assert timeline.drained_by(now) >= timeline.lanes(now).done_at


def test_a_batch_behind_another_begins_when_that_one_ends() -> None:
    """So its own time is learned, not the wait."""
    p = policy()
    first = p.timeline.begin(1, 0.0)
    second = p.timeline.begin(1, 0.8)
    assert p.timeline.free_at(0.8) == 2.0
    p.timeline.end(first, 1.2, computed=True)
    assert p.timeline.free_at(1.2) == pytest.approx(2.2)
    p.timeline.end(second, 2.2, computed=True)
    assert len(p.timeline) == 0
    assert p.table.seconds(1) == 1.0


def test_a_late_batch_is_expected_to_be_as_late_again() -> None:
    p = policy()
    p.timeline.begin(1, 0.0)
    assert p.timeline.free_at(1.5) == 2.0


def test_a_failed_batch_teaches_nothing() -> None:
    """Engines fail fast, or slowly; neither says what a batch takes."""
    p = policy()
    for n in range(9):
        p.timeline.end(p.timeline.begin(8, 10.0 * n), 10.0 * n + 5, computed=False)
    assert p.table.seconds(8) == 1.0
    assert p.timeline.margin.share == pytest.approx(0.1, rel=1e-9)


def test_a_computed_batch_teaches_the_table_and_the_margin() -> None:
    """Twice as long, several times."""
    p = policy()
    for n in range(5):
        p.timeline.end(p.timeline.begin(8, 10.0 * n), 10.0 * n + 2, computed=True)
    assert p.table.seconds(8) == pytest.approx(2.0, rel=0.05)
    assert p.timeline.margin.share > 0.1


def test_a_batch_in_time_teaches_that_it_was() -> None:
    """At whatever hour."""
    p = policy()
    p.timeline.end(p.timeline.begin(8, 1000.0), 1001.0, computed=True)
    assert 0.09 < p.timeline.margin.share < 0.1
    assert p.table.seconds(8) == pytest.approx(1.0)


def test_the_arrival_rate_follows_and_fades() -> None:
    """Ten a second for a while; then nothing."""
    arrivals = Arrivals(memory=2.0)
    assert arrivals.gap(0.0) == float("inf")
    for n in range(200):
        arrivals.record(n / 10)
    assert arrivals.gap(19.9) == pytest.approx(0.1, rel=0.05)
    assert arrivals.gap(24.0) > 0.5


def test_arrivals_are_remembered_for_a_while() -> None:
    """16 x T(1) of the engine that computes."""
    p = policy(steps)
    p.arrivals.record(0.0)
    assert p.arrivals.gap(0.0) == 16
    p.switch(table(lambda size: 2 + size))
    p.arrivals.record(0.0)
    assert p.arrivals.gap(0.0) == 16 * 3


def test_busy_time_counts_each_second_once() -> None:
    """However many batches the engine has; the one that is under way included."""
    p = policy()
    first = p.timeline.begin(1, 1.0)
    second = p.timeline.begin(1, 2.0)
    assert p.timeline.busy_seconds(2.5) == 1.5
    p.timeline.end(first, 3.0, computed=True)
    p.timeline.end(second, 4.0, computed=False)
    assert p.timeline.busy_seconds(10.0) == 3.0
    p.timeline.begin(1, 11.0)
    assert p.timeline.busy_seconds(12.0) == 4.0
