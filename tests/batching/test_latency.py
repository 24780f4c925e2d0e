"""What the table and the margin learn, and what they do not."""

from __future__ import annotations

import random

import pytest

from batching import LatencyTable
from batching.latency import Margin

BUCKETS = (1, 2, 4, 8, 16, 32, 64)


def linear(size: int) -> float:
    return 1.0 + 0.02 * size


def table(noise: float = 0.05) -> LatencyTable:
    runs = (1 - noise, 1.0, 1 + noise)
    return LatencyTable({b: [linear(b) * run for run in runs] for b in BUCKETS})


def times(table: LatencyTable) -> list[float]:
    return list(table.as_dict().values())


def test_a_bucket_starts_at_its_median() -> None:
    """The first run of a size is often slow."""
    table = LatencyTable({1: [9.0, 1.0, 1.1], 4: [2.0]})
    assert table.as_dict() == {1: 1.1, 4: 2.0}


@pytest.mark.parametrize(
    "samples", [{}, {1: []}, {0: [1.0], 1: [1.0]}, {1: [0.0]}, {1: [float("inf")]}]
)
def test_samples_that_say_nothing_are_refused(samples: dict[int, list[float]]) -> None:
    """A table must be able to answer."""
    with pytest.raises(ValueError, match=r"sample|seconds"):
        LatencyTable(samples)


def test_a_batch_takes_what_its_bucket_takes() -> None:
    """Padding is paid for."""
    table = LatencyTable({1: [1.0], 4: [2.0], 8: [3.0]})
    assert [table.bucket(size) for size in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    assert [table.seconds(size) for size in (0, 1, 2, 4, 5, 8)] == [0, 1, 2, 2, 3, 3]


def test_the_largest_batch_within_a_time() -> None:
    """To the end of its bucket; none if time is too short or gone."""
    table = LatencyTable({1: [1.0], 4: [2.0], 8: [3.0]})
    fits = [table.largest_within(t) for t in (-1.0, 0.0, 0.9, 1.0, 1.9, 2.0, 3.0, 99.0)]
    assert fits == [0, 0, 0, 1, 1, 4, 8, 8]


def test_larger_never_looks_faster() -> None:
    """Buckets that disagree with that share their mean; the others stay as measured."""
    table = LatencyTable({1: [1.0], 2: [3.0], 4: [2.0], 8: [4.0]})
    assert table.as_dict() == {1: 1.0, 2: 2.5, 4: 2.5, 8: 4.0}


def test_all_that_wait_are_computed_unless_two_batches_are_sooner_done() -> None:
    """Of five, four and then one, where every item costs; all of them, where a batch does."""
    cheap = LatencyTable({b: [linear(b)] for b in BUCKETS})
    dear = LatencyTable({b: [0.3 + 0.6 * b] for b in BUCKETS})
    assert [cheap.best(size) for size in range(65)] == list(range(65))
    assert [dear.best(size) for size in (1, 2, 3, 4, 5, 6, 7, 8, 12, 15)] == [
        1, 2, 2, 4, 4, 4, 7, 8, 8, 15,
    ]  # fmt: skip


def test_of_a_single_bucket_nothing_is_split() -> None:
    """All of it is always paid for."""
    assert [LatencyTable({4: [1.0]}).best(size) for size in range(5)] == [0, 1, 2, 3, 4]


def test_an_engine_that_gets_worse_with_size_gets_small_batches() -> None:
    """Throughput may fall again: memory, caches; at once or little by little."""
    cliff = LatencyTable({1: [1.0], 2: [1.1], 4: [9.0]})
    slope = LatencyTable({size: [size**1.3] for size in range(1, 9)})
    assert [cliff.best(size) for size in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert [slope.best(size) for size in (1, 2, 4, 8)] == [1, 1, 1, 1]


def test_a_batch_is_split_where_that_saves_most() -> None:
    """Three and three, each in two seconds, instead of six in ten."""
    t = LatencyTable({1: [1.0], 2: [1.5], 3: [2.0], 4: [10.0], 5: [10.0], 6: [10.0]})
    assert [t.best(size) for size in range(1, 7)] == [1, 2, 3, 3, 2, 3]


def test_the_smallest_batch_that_keeps_up() -> None:
    """By items a second; when none does, the best."""
    table = LatencyTable({1: [1.0], 2: [1.5], 4: [2.0]})  # 1, 1.33, 1.5 and 2 a second
    assert [table.keeps_up_with(rate) for rate in (0, 0.5, 1.0, 1.2, 1.4, 1.9, 9.0)] == [
        1, 1, 1, 2, 3, 4, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [50.0, 0.02])
@pytest.mark.parametrize("before", [0, 1])
def test_one_outlier_moves_nothing(before: int, factor: float) -> None:
    """However far out, and be it the first."""
    fresh, hit = table(), table()
    for run in [1.0] * before + [factor, 1.0]:
        hit.observe(64, run * linear(64))
    assert times(hit) == times(fresh)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_lasting_change_is_followed_within_a_few_batches(factor: float) -> None:
    """Up or down; the first batch only raises suspicion."""
    t = table()
    for _ in range(5):
        t.observe(64, factor * linear(64))
    assert t.seconds(64) == pytest.approx(factor * linear(64), rel=0.05)


def test_a_change_that_two_sizes_agree_on_counts_for_all() -> None:
    """A throttled device is slower at every size."""
    t = table()
    for _ in range(4):
        t.observe(64, 2 * linear(64))
        t.observe(8, 2 * linear(8))
    assert times(t) == pytest.approx([2 * linear(b) for b in BUCKETS], rel=0.1)


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (2.0, 2.0),  # who was right before is so no longer
        (0.5, 0.5),
        (1.12, 1.12),  # 3.8 standard deviations
        (1.08, 1.0),  # 2.6 may be noise, by which nothing else is moved
        (0.93, 1.0),
    ],
)
def test_a_size_that_was_right_when_it_last_ran(change: float, after: float) -> None:
    """The spread is 3 %: beyond three times that it is the device that has changed."""
    t = table(noise=0.02)
    assert t.spread == pytest.approx(0.03, rel=0.05)
    for _ in range(3):
        t.observe(4, linear(4))
    t.observe(64, change * linear(64))
    t.observe(32, change * linear(32))
    assert t.seconds(4) == pytest.approx(after * linear(4), rel=0.03)


def test_what_two_sizes_agree_on_is_lived_down_where_it_does_not_hold() -> None:
    """A size that only the others have become slower than is right again after two batches."""
    t = table()
    t.observe(4, linear(4))
    for _ in range(3):
        t.observe(64, 2 * linear(64))
        t.observe(32, 2 * linear(32))
    assert t.seconds(4) > 1.8 * linear(4)
    t.observe(4, linear(4))
    t.observe(4, linear(4))
    assert t.seconds(4) == pytest.approx(linear(4), rel=0.1)
    assert t.seconds(64) == pytest.approx(2 * linear(64), rel=0.1)


def test_a_stall_of_all_lanes_is_lived_down_by_two_batches() -> None:
    """Two batches that computed side by side were held by the same stall, and look like two
    witnesses."""
    t = table()
    t.observe(32, 50 * linear(32))
    t.observe(16, 50 * linear(16))
    assert t.seconds(4) > 10 * linear(4)
    t.observe(32, linear(32))
    t.observe(16, linear(16))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.1)


def test_sizes_that_contradict_each_other_do_not_drive_the_table_apart() -> None:
    """Small batches that take longer than large ones, because something else keeps the loop busy:
    no size is expected to take much less than the fastest that ran, or more than the slowest."""
    t = table()
    for _ in range(200):
        t.observe(64, linear(32))
        t.observe(32, linear(64))
        t.observe(16, linear(64))
    assert all(0.9 * linear(1) < seconds < 1.5 * linear(64) for seconds in times(t))
    assert t.seconds(16) > 0.9 * linear(32)


def test_one_size_says_next_to_nothing_about_a_far_one() -> None:
    """A quiet hour of slow single items leaves the full batch where it was."""
    t = table()
    for _ in range(100):
        t.observe(1, 1.5 * linear(1))
    assert t.seconds(1) == pytest.approx(1.5 * linear(1), rel=0.05)
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.02)


@pytest.mark.parametrize("slowdown", [2.0, 3.0, 6.0, 50.0])
@pytest.mark.parametrize("running", [(1,), (1, 2), (1, 2, 4, 8), (8, 16, 32)])
def test_a_size_that_was_slow_once_is_tried_again(
    slowdown: float, running: tuple[int, ...]
) -> None:
    """However slow it was, and whatever runs instead since the device has recovered."""
    t, random_ = table(), random.Random(3)
    for _ in range(20):
        t.observe(64, slowdown * linear(64))
        t.observe(32, slowdown * linear(32))
    assert t.seconds(64) > 0.9 * slowdown * linear(64)
    for n in range(64):
        size = running[n % len(running)]
        t.observe(size, linear(size) * random_.gauss(1, 0.03))
    assert t.best(64) == 64
    for _ in range(4):
        t.observe(64, linear(64))
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.1)


def test_a_slow_moment_costs_no_patience() -> None:
    """Only a size that is still slow when it is tried again is left alone for longer; after the
    next slow moment it is tried again as soon."""
    t = table()
    for _ in range(2):
        for _ in range(2):
            t.observe(64, 3 * linear(64))
        assert t.seconds(64) > 2 * linear(64)
        for _ in range(40):
            t.observe(1, linear(1))
        assert t.seconds(64) == pytest.approx(linear(64), rel=0.05)
        t.observe(64, linear(64))


def test_a_size_still_slow_when_tried_again_is_left_alone_for_twice_as_long() -> None:
    """32 batches, then 64."""
    t = table()
    for patience in (32, 64):
        for _ in range(2):
            t.observe(64, 3 * linear(64))
        for _ in range(patience):
            t.observe(1, linear(1))
        assert t.seconds(64) > 2 * linear(64)
        t.observe(1, linear(1))
        assert t.seconds(64) == pytest.approx(linear(64), rel=0.05)


def test_a_slow_warm_up_is_lived_down() -> None:
    """Measured beside a neighbour who has gone since: sizes that do not run come down with those
    that do."""
    t = LatencyTable({b: [20 * linear(b)] * 3 for b in BUCKETS})
    for _ in range(64):
        t.observe(1, linear(1))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.1)


def test_a_size_that_never_ran_has_run_at_warm_up() -> None:
    """So it is doubted 32 batches later."""
    t = LatencyTable({b: [20 * linear(b)] * 3 for b in BUCKETS})
    for _ in range(32):
        t.observe(1, linear(1))
    assert t.seconds(64) > 10 * linear(64)
    t.observe(1, linear(1))
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.1)


def test_a_size_that_stays_slow_is_tried_less_and_less() -> None:
    """Full batches that no longer pay are found out again and again, ever more rarely."""
    t = table()
    tried = []
    for n in range(6000):
        size = t.best(64)
        t.observe(size, (6.0 if size == 64 else 1.0) * linear(size))
        tried += [n] if size == 64 else []
    late = [n for n in tried if n > 2000]
    assert 0 < len(late) < 0.003 * 4000


def test_outliers_far_apart_do_not_agree() -> None:
    """What was heard of a size long ago confirms nothing."""
    t = table()
    t.observe(64, 50 * linear(64))
    for _ in range(64):
        t.observe(1, linear(1))
    t.observe(64, 50 * linear(64))
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.02)


def test_two_sizes_that_disagree_are_both_learned() -> None:
    """Taking turns does not make their errors cancel."""
    t = table()
    for _ in range(20):
        t.observe(1, 0.8 * linear(1))
        t.observe(64, 1.3 * linear(64))
    assert t.seconds(1) == pytest.approx(0.8 * linear(1), rel=0.06)
    assert t.seconds(64) == pytest.approx(1.3 * linear(64), rel=0.06)


def test_noise_moves_little() -> None:
    """A thousand noisy batches leave the table within a few percent, and in order."""
    t, random_ = table(), random.Random(1)
    for _ in range(1000):
        size = random_.choice(BUCKETS)
        t.observe(size, linear(size) * random_.gauss(1, 0.05))
        assert times(t) == sorted(times(t))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.08)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_what_the_clock_cannot_tell_is_not_learned(seconds: float) -> None:
    """Zero seconds is a clock too coarse, not a fast engine."""
    t = table()
    for _ in range(5):
        t.observe(64, seconds)
    assert times(t) == times(table())


def test_the_spread_is_that_of_the_typical_bucket() -> None:
    """One wild bucket does not make all untrustworthy."""
    t = LatencyTable({1: [1, 1.1, 0.9], 2: [1, 5, 9], 4: [2, 2.2, 1.8]})
    assert t.spread == pytest.approx(0.148, abs=0.001)


@pytest.mark.parametrize(
    ("runs", "distance"), [([0.98, 1.0, 1.1], 0.06), ([1.0, 1.2], 0.1 / 1.1), ([1.0], 0.0)]
)
def test_the_run_that_is_the_median_says_nothing_of_the_spread(
    runs: list[float], distance: float
) -> None:
    """It is no distance from itself; of an even number of runs none is."""
    spread = LatencyTable({1: runs}).spread
    assert spread == pytest.approx(max(1.4826 * distance, 0.01))


def test_the_margin_covers_all_but_one_in_a_hundred() -> None:
    """Whatever the spread is, and from whatever start."""
    for sigma in (0.02, 0.05, 0.2):
        margin, random_ = Margin(0.05), random.Random(2)
        late = 0
        for n in range(20_000):
            actual = random_.gauss(1, sigma)
            late += n >= 5000 and actual > 1 + margin.share
            margin.observe(1.0, actual)
        assert 0.005 < late / 15_000 < 0.02


def test_an_overrun_raises_the_margin_by_a_fifth() -> None:
    """And a hundred batches that keep their time bring it back."""
    margin = Margin(0.1)
    margin.observe(1.0, 1.4)
    assert margin.share == pytest.approx(0.3 * 1.22, rel=0.01)
    for _ in range(99):
        margin.observe(1.0, 1.3)
    assert margin.share == pytest.approx(0.3)


def test_overruns_in_a_row_count_once() -> None:
    """A slow-down is for the table to learn; the margin would remember it for too long."""
    once, often = Margin(0.05), Margin(0.05)
    once.observe(1.0, 9.0)
    for _ in range(10):
        often.observe(1.0, 9.0)
    assert once.share > 1.1 * Margin(0.05).share
    assert often.share <= once.share


def test_the_margin_stays_within_reason() -> None:
    """Neither nothing nor more than the time itself."""
    margin = Margin(0.0)
    assert margin.share == 0.01
    for _ in range(1000):
        margin.observe(1.0, 9.0)
        margin.observe(1.0, 1.0)
        assert margin.share <= 1.0
    assert margin.share == pytest.approx(1.0, rel=0.01)
