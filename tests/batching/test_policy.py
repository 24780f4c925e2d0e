"""The rules of the policy, one at a time.

Unless a test says otherwise, a batch of up to 8 takes 1 s and the margin is 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batching.latency import LatencyTable
from batching.policy import ACCEPTED_MARGIN, MAX_CHOICES, Arrivals, Policy
from batching.timeline import Lanes
from tests.batching.fakes import policy, steps, table

A_LITTLE = 1e-9


def flood(p: Policy, now: float, per_second: float) -> None:
    """Record arrivals at this rate for 100 s."""
    for n in range(round(100 * per_second), -1, -1):
        p.arrivals.record(now - n / per_second)


# Which items are rejected


@pytest.mark.parametrize(
    ("deadlines", "deadline", "late"),
    [
        ([], 1.11, None),
        ([], 1.09, 0.01),
        ([], 0.5, 0.6),
        ([9.0] * 7, 1.2, None),
        ([9.0] * 8, 1.2, None),  # it would be first, and the eighth item has time
        ([9.0] * 8, 9.0, None),
        ([1.5] * 8, 2.1, 0.1),  # second batch: 2 s and the margin
        ([1.5] * 8, 2.3, None),
    ],
)
def test_seconds_late_includes_the_margin(
    deadlines: list[float], deadline: float, late: float | None
) -> None:
    """A new item is accepted if it is in time with the margin; otherwise the result is by how many
    seconds it would be late."""
    assert policy().seconds_late(deadlines, deadline, 0.0) == (late and pytest.approx(late))


def test_seconds_late_counts_batches_in_flight() -> None:
    """A new item waits for the remaining time of the batches in flight."""
    p = policy()
    p.timeline.begin(8, 0.0)
    p.timeline.begin(8, 0.9)
    assert p.seconds_late([], 0.9 + 2.1 * 1.1 + A_LITTLE, 0.9) is None
    assert p.seconds_late([], 0.9 + 2.1 * 1.1 - 0.1, 0.9) == pytest.approx(0.1)


def test_seconds_late_protects_accepted_items() -> None:
    """A new item is rejected if it would be in time itself but make an accepted item late."""
    p = policy()
    assert p.seconds_late([1.5] * 8, 1.2, 0.0) is not None
    assert p.seconds_late([1.5] * 7 + [2.3], 1.2, 0.0) is None


def test_seconds_late_ignores_items_that_are_lost() -> None:
    """Items that can no longer be in time will be given up, and take no time."""
    assert policy().seconds_late([0.5] * 80, 1.2, 0.0) is None


def test_seconds_late_respects_the_first_deadline_of_a_batch() -> None:
    """Four items take 2.5 s, for which the first has no time. So the fourth goes into the next
    batch."""
    p = policy(steps, (1, 2, 3, 4))
    assert p.seconds_late([2.3] * 3, 3.7, 0.0) is None
    assert p.seconds_late([2.3] * 3, 3.2, 0.0) == pytest.approx(0.1)
    assert p.seconds_late([2.8] * 3, 3.2, 0.0) is None


def test_seconds_late_plans_batches_as_form_batch_does() -> None:
    """Accepted items need only half of the margin. Eight of them with that much are expected to be
    computed, so a new item waits for them."""
    p = policy(steps, (1, 2, 3, 4, 5, 6, 7, 8))
    full = [4.5 * 1.06] * 8
    assert p.form_batch(full, 0.0) == (0, 8)
    assert p.seconds_late(full, (4.5 + 1.0) * 1.1 + A_LITTLE, 0.0) is None
    assert p.seconds_late(full, (4.5 + 1.0) * 1.1 - 0.1, 0.0) == pytest.approx(0.1)


def test_seconds_late_keeps_the_margin_of_items_behind_a_new_one() -> None:
    """A new item is rejected if it would leave an item behind it with half of the margin only."""
    p = policy()
    assert p.seconds_late([9.0] * 7 + [2.0 * 1.06], 2.0, 0.0) is not None
    assert p.seconds_late([9.0] * 7 + [2.0 * 1.11], 2.0, 0.0) is None


def test_seconds_late_rejects_a_batch_too_small_under_overload() -> None:
    """A new item could be computed alone, but far more items could be answered in that time."""
    p = policy(lambda size: 1.0 + 0.1 * size)
    p.timeline.begin(8, 0.0)
    alone, together = (1.8 + 1.1) * 1.1 + A_LITTLE, (1.8 + 1.8) * 1.1 + A_LITTLE
    assert p.seconds_late([], alone, 0.0) is None
    flood(p, 0.0, per_second=100)
    assert p.seconds_late([], alone, 0.0) == pytest.approx(0.7 * 1.1)
    assert p.seconds_late([], together, 0.0) is None
    assert p.seconds_late([together], together, 0.0) is None


def test_seconds_late_accepts_what_one_timeout_can_gather() -> None:
    """A worthwhile batch can arrive and be computed within one timeout. Otherwise no item would be
    accepted."""
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
def test_seconds_late_assumes_the_smallest_worthwhile_batch(
    gap: float, timeout: float, needed: int
) -> None:
    """Worked out by hand: the batch that keeps up with the arrivals, or the best that can be
    gathered. The deadline allows no batch at all, so the item is late by the time of that batch."""

    class Steady(Arrivals):
        def gap(self, now: float) -> float:
            return gap

    p = policy(steps, range(1, 9))
    p.arrivals = Steady(1.0)
    busy = timeout / 1.1 - 0.9  # not enough is left for one, which takes 1
    p.timeline.begin(1, 100.0).seconds = busy
    late = (busy + steps(needed)) * 1.1 - timeout
    assert p.seconds_late([], 100.0 + timeout, 100.0) == pytest.approx(late)


def test_seconds_late_counts_small_batches_of_accepted_items() -> None:
    """Only new items need a worthwhile batch. Items that were accepted before the overload are
    computed, so a new item waits for them."""
    p = policy(steps, range(1, 9))
    flood(p, 0.0, per_second=100)
    assert p.seconds_late([1.06], 5.5 * 1.1 - 0.1, 0.0) == pytest.approx(0.1)


def test_seconds_late_accepts_small_batches_at_a_low_rate() -> None:
    """As long as small batches keep up with the arrivals, no item is rejected for the sake of
    larger ones."""
    p = policy(lambda size: 1.0 + 0.1 * size)
    flood(p, 0.0, per_second=0.8)
    p.timeline.begin(8, 0.0)
    assert p.seconds_late([], (1.8 + 1.1) * 1.1 + A_LITTLE, 0.0) is None


def test_policy_tries_one_item_when_predictions_are_stale() -> None:
    """A second after the last batch, one item that waits alone is accepted and computed, but not
    two."""
    p = policy()
    p.timeline.end(p.timeline.begin(1, 0.0), 1.0, computed=True)
    assert p.seconds_late([], 2.4, 1.9) is not None
    assert p.seconds_late([], 2.6, 2.1) is None
    assert p.seconds_late([2.6], 2.6, 2.1) is not None
    assert p.seconds_late([], 2.1, 2.1) is not None, "not if the deadline has passed"
    assert p.form_batch([2.6], 2.1) == (0, 1)
    assert p.form_batch([2.1], 2.1) == (1, 0)
    assert p.form_batch([2.0, 2.3, 2.6], 2.1) == (2, 1)
    assert p.form_batch([2.4], 1.9) == (1, 0)
    p.timeline.begin(1, 2.1)
    assert p.seconds_late([], 2.6, 2.2) is not None, "one at a time"


# When a batch is formed


def test_due_at_is_now_for_an_idle_engine() -> None:
    """If the engine is idle, a batch is formed at once."""
    assert policy().due_at([99.0], 7.0, 7.0) == 7.0


def test_due_at_is_just_before_the_engine_is_free() -> None:
    """A batch is formed earlier than the predicted end by the margin of the batches in flight."""
    p = policy()
    p.timeline.begin(1, 5.0)
    assert p.due_at([99.0], 5.2, 5.2) == pytest.approx(5.9)
    assert p.due_at([99.0], 5.95, 5.95) <= 5.95


def test_due_at_is_now_for_a_batch_that_cannot_grow() -> None:
    """A batch is due if it has its maximum size, if its first deadline allows no more items, or if
    its first item is lost."""
    p = policy(steps)
    p.timeline.begin(1, 0.0)
    assert p.due_at([99.0] * 7, 0.0, 0.0) > 0.5
    assert p.due_at([99.0] * 8, 0.0, 0.0) == 0.0
    assert p.due_at([2.8, 99.0], 0.0, 0.0) == 0.0
    assert p.due_at([1.0], 0.0, 0.0) == 0.0


def test_due_at_is_before_a_deadline_is_at_stake() -> None:
    """A batch waits no longer than its first deadline allows, with time for one more item."""
    p = policy(steps)
    assert p.due_at([99.0], 3.0, 0.0) == 3.0
    assert p.due_at([4.0], 3.0, 0.0) == pytest.approx(4.0 - 1.5 * 1.1)
    assert p.due_at([4.0, 99.0], 3.0, 0.0) == pytest.approx(4.0 - 2.5 * 1.1), "the first's"


# How large it is


@pytest.mark.parametrize(
    ("deadlines", "expected"),
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
def test_form_batch_is_as_large_as_deadlines_allow(
    deadlines: list[float], expected: tuple[int, int]
) -> None:
    """Items that can no longer be in time are given up. The batch after them is as large as its
    first deadline allows."""
    assert policy(steps, (1, 2, 3, 4, 5, 6, 7, 8)).form_batch(deadlines, 0.0) == expected


@pytest.mark.parametrize(
    ("deadlines", "expected"),
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
def test_form_batch_gives_up_as_few_items_as_possible(
    deadlines: list[float], expected: tuple[int, int]
) -> None:
    """A full batch gives some items up if a small batch in time for them would make more items
    late."""
    assert policy(steps, (1, 2, 3, 4, 5, 6, 7, 8)).form_batch(deadlines, 0.0) == expected


def late_if(p: Policy, deadlines: Sequence[float], given_up: int, start: float) -> int:
    """How many items are late at time 0 if `given_up` are given up, computed without shortcuts."""
    clock, late, rest = start, given_up, list(deadlines[given_up:])
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
def test_form_batch_has_no_better_choice(
    tenths: list[int], in_flight: int, fixed: float, per_item: float, margin: float
) -> None:
    """Of all numbers of items that could be given up, the result is the smallest of those with the
    fewest late items."""
    p = policy(lambda size: fixed + per_item * size, margin=margin)
    p.timeline.begin(in_flight, 0.0)
    start = p.timeline.free_at(0.0)
    deadlines = sorted(0.0997 * n for n in tenths)
    hopeless = sum(deadline < start + p.table.seconds(1) for deadline in deadlines)
    lost, size = p.form_batch(deadlines, 0.0)
    assert lost + size <= len(deadlines)
    assert (size == 0) == (lost == len(deadlines)) == (hopeless == len(deadlines))
    if size:
        late = [late_if(p, deadlines, n, start) for n in range(hopeless, len(deadlines))]
        assert late_if(p, deadlines, lost, start) == min(late)
        trusted = deadlines[hopeless] / (1 + ACCEPTED_MARGIN * p.timeline.margin.share)
        if p.table.largest_within(trusted - start) < min(8, len(deadlines) - hopeless):
            assert lost == hopeless + late.index(min(late))


def test_form_batch_compares_a_bounded_number_of_choices() -> None:
    """Of 33 choices every third is compared. Giving up 20 is not tried; with 21, 25 items are late,
    with 1 it would be 26."""
    p = policy(steps, range(1, 9))
    assert p.form_batch([1.05] * 20 + [4.8] * 13, 0.0) == (21, 8)


def test_form_batch_avoids_expensive_padding() -> None:
    """Of five items, four are computed now and one with the next batch if padding to eight takes
    twice as long."""
    assert policy(lambda size: 0.1 + 0.6 * size).form_batch([99.0] * 5, 0.0) == (0, 4)
    assert policy(lambda size: 1.0 + 0.02 * size).form_batch([99.0] * 5, 0.0) == (0, 5)


def test_seconds_late_plans_the_item_left_over_by_padding() -> None:
    """Behind eight items, four of five take 2.5 s and the fifth its own time, though all had time
    for a batch of eight. The margin is as large as the time."""
    p = policy(lambda size: 0.1 + 0.6 * size, margin=1.0)
    deadlines = [(4.9 + 4.9) * 1.5 + A_LITTLE] * 12
    assert p.seconds_late(deadlines, 16.0, 0.0) == pytest.approx((4.9 + 2.5 + 0.7) * 2 - 16.0)


def test_policy_limits_batches_after_memory_ran_out() -> None:
    """Nine items take three batches of four instead of two of eight, in batches and in
    predictions."""
    p = policy()
    p.memory.ran_out(8, 0.0)
    assert p.form_batch([99.0] * 9, 0.0) == (0, 4)
    assert p.seconds_late([9.0] * 8, 9.0, 0.0) is None
    assert p.seconds_late([2.25] * 8, 2.25, 0.0) is not None
    assert p.drained_at(9, 0.0) == 3.0


def test_form_batch_predicts_the_begin_behind_batches_in_flight() -> None:
    """Another batch may be handed over, but the engine begins it later: items that would be late by
    then are given up."""
    p = policy()
    p.timeline.begin(8, 0.0)
    assert p.form_batch([1.5, 9.0], 0.5) == (1, 1)


def test_policy_decides_quickly_with_many_items() -> None:
    """With 8,000 items in the queue, late or not, a decision takes a bounded number of lookups."""
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
    """An example: a new item with the last deadline, one lane, time 0."""
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
# Deadlines for 66 batches or for four, while two are planned: no more may be counted.
@at_the_end([133.0] * 16)
@at_the_end([8.2] * 16)
# The first has time for two, not for eight.
@at_the_end([1.5] + [5.1] * 15)
# A single item is computed quickly, but does not keep up with the arrivals.
@at_the_end([2.8], taken=3, kind="quick alone", flooded=True)
# Items ahead have time for small batches only, which take longer in total.
@at_the_end([2.5, 3.3, 3.6, 4.3, 5.0, 5.1, 5.4, 6.4, 6.9, 7.5], more=0.8, taken=2)
def test_shortcuts_give_the_same_result(
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
    """For a new item anywhere in any queue, with any lanes, in time or late, the result is the same
    as if every batch were planned."""
    results = []
    for rules in Policy, WithoutShortcuts:
        p = rules(LatencyTable(DEVICES[kind]), size, lanes)
        if flooded:
            flood(p, 0.0, 10.0)
        for _ in range(taken):
            p.timeline.begin(1, 0.0)
        deadlines = sorted(waiting)
        deadline = [*deadlines, deadlines[-1] + more if deadlines else more][
            min(place, len(deadlines))
        ]
        with p.timeline.reserve(owed) if owed else nullcontext():
            results.append(p.seconds_late(deadlines, deadline, at))
    assert results[0] == results[1]


def test_seconds_late_plans_no_batches_if_time_is_ample() -> None:
    """With ample time no batch is planned, whether few items wait or the engine is busy. With
    little time batches are planned."""
    lookups = CountingTable({n: [1.0] for n in (1, 2, 4, 8)})
    p = Policy(lookups, 8)
    p.timeline.begin(8, 0.0)
    for deadlines in [], [50.0], [50.0] * 15:
        assert p.seconds_late(deadlines, 60.0, 0.0) is None
    assert not lookups.count
    p.seconds_late([50.0] * 15, 3.0, 0.0)
    assert lookups.count


@pytest.mark.parametrize("deadline", [0.5, 1020.0, 2e3])
def test_seconds_late_skips_items_far_ahead(deadline: float) -> None:
    """Neither a thousand full batches ahead nor lost items are looked at one by one."""
    lookups = CountingTable({n: [1.0] for n in (1, 2, 4, 8)})
    assert Policy(lookups, 8).seconds_late([deadline] * 8000, 3e3, 0.0) is None
    assert lookups.count <= 3


def test_policy_remembers_arrivals_for_16_times_t1() -> None:
    """Arrivals are remembered for 16 x T(1) of the engine that computes."""
    p = policy(steps)
    p.arrivals.record(0.0)
    assert p.arrivals.gap(0.0) == 16
    p.switch(table(lambda size: 2 + size))
    p.arrivals.record(0.0)
    assert p.arrivals.gap(0.0) == 16 * 3


def test_arrivals_follow_the_rate_and_decay() -> None:
    """The gap follows ten items per second, and grows when no more arrive."""
    arrivals = Arrivals(memory=2.0)
    assert arrivals.gap(0.0) == float("inf")
    for n in range(200):
        arrivals.record(n / 10)
    assert arrivals.gap(19.9) == pytest.approx(0.1, rel=0.05)
    assert arrivals.gap(24.0) > 0.5
