"""The latency table and the margin: what they learn and what they ignore."""

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


def test_table_starts_at_the_median_of_a_bucket() -> None:
    """The first run of a size is often slow."""
    table = LatencyTable({1: [9.0, 1.0, 1.1], 4: [2.0]})
    assert table.as_dict() == {1: 1.1, 4: 2.0}


@pytest.mark.parametrize(
    "samples", [{}, {1: []}, {0: [1.0], 1: [1.0]}, {1: [0.0]}, {1: [float("inf")]}]
)
def test_table_rejects_missing_or_bad_samples(samples: dict[int, list[float]]) -> None:
    """Every bucket needs a positive number of seconds."""
    with pytest.raises(ValueError, match=r"sample|seconds"):
        LatencyTable(samples)


def test_seconds_includes_padding() -> None:
    """A batch takes as long as its bucket."""
    table = LatencyTable({1: [1.0], 4: [2.0], 8: [3.0]})
    assert [table.bucket(size) for size in (1, 2, 4, 5, 8)] == [1, 4, 4, 8, 8]
    assert [table.seconds(size) for size in (0, 1, 2, 4, 5, 8)] == [0, 1, 2, 2, 3, 3]


def test_largest_within_ends_at_a_bucket() -> None:
    """The largest size of a bucket that fits; 0 if the time is too short or negative."""
    table = LatencyTable({1: [1.0], 4: [2.0], 8: [3.0]})
    fits = [table.largest_within(t) for t in (-1.0, 0.0, 0.9, 1.0, 1.9, 2.0, 3.0, 99.0)]
    assert fits == [0, 0, 0, 1, 1, 4, 8, 8]


def test_table_never_decreases_with_size() -> None:
    """Buckets out of order get their mean; the others stay as measured."""
    table = LatencyTable({1: [1.0], 2: [3.0], 4: [2.0], 8: [4.0]})
    assert table.as_dict() == {1: 1.0, 2: 2.5, 4: 2.5, 8: 4.0}


def test_best_is_all_unless_two_batches_take_less() -> None:
    """Of five items, four and then one if each item takes time; all of them if each batch does."""
    cheap = LatencyTable({b: [linear(b)] for b in BUCKETS})
    dear = LatencyTable({b: [0.3 + 0.6 * b] for b in BUCKETS})
    assert [cheap.best(size) for size in range(65)] == list(range(65))
    assert [dear.best(size) for size in (1, 2, 3, 4, 5, 6, 7, 8, 12, 15)] == [
        1, 2, 2, 4, 4, 4, 7, 8, 8, 15,
    ]  # fmt: skip


def test_best_does_not_split_a_single_bucket() -> None:
    """Every batch takes the time of the whole bucket."""
    assert [LatencyTable({4: [1.0]}).best(size) for size in range(5)] == [0, 1, 2, 3, 4]


def test_best_is_small_if_large_batches_are_inefficient() -> None:
    """Throughput may fall with size because of memory or caches, at once or gradually."""
    cliff = LatencyTable({1: [1.0], 2: [1.1], 4: [9.0]})
    slope = LatencyTable({size: [size**1.3] for size in range(1, 9)})
    assert [cliff.best(size) for size in (1, 2, 3, 4)] == [1, 2, 2, 2]
    assert [slope.best(size) for size in (1, 2, 4, 8)] == [1, 1, 1, 1]


def test_best_splits_where_it_saves_most() -> None:
    """Three and three, each in two seconds, instead of six in ten."""
    t = LatencyTable({1: [1.0], 2: [1.5], 3: [2.0], 4: [10.0], 5: [10.0], 6: [10.0]})
    assert [t.best(size) for size in range(1, 7)] == [1, 2, 3, 3, 2, 3]


def test_keeps_up_with_is_the_smallest_sufficient_size() -> None:
    """By items per second; the best size if none keeps up."""
    table = LatencyTable({1: [1.0], 2: [1.5], 4: [2.0]})  # 1, 1.33, 1.5 and 2 a second
    assert [table.keeps_up_with(rate) for rate in (0, 0.5, 1.0, 1.2, 1.4, 1.9, 9.0)] == [
        1, 1, 1, 2, 3, 4, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("factor", [50.0, 0.02])
@pytest.mark.parametrize("before", [0, 1])
def test_observe_ignores_one_outlier(before: int, factor: float) -> None:
    """However far off it is, and even if it is the first batch."""
    fresh, hit = table(), table()
    for run in [1.0] * before + [factor, 1.0]:
        hit.observe(64, run * linear(64))
    assert times(hit) == times(fresh)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_observe_follows_a_lasting_change(factor: float) -> None:
    """Up or down, within five batches."""
    t = table()
    for _ in range(5):
        t.observe(64, factor * linear(64))
    assert t.seconds(64) == pytest.approx(factor * linear(64), rel=0.05)


def test_observe_applies_a_common_change_to_all_sizes() -> None:
    """A throttled device is slower at every size."""
    t = table()
    for _ in range(4):
        t.observe(64, 2 * linear(64))
        t.observe(8, 2 * linear(8))
    assert times(t) == pytest.approx([2 * linear(b) for b in BUCKETS], rel=0.1)


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (2.0, 2.0),  # sizes that were correct before change too
        (0.5, 0.5),
        (1.12, 1.12),  # 3.8 standard deviations
        (1.08, 1.0),  # 2.6 may be noise, by which nothing else is moved
        (0.93, 1.0),
    ],
)
def test_observe_applies_only_changes_beyond_noise_to_correct_sizes(
    change: float, after: float
) -> None:
    """The spread is 3 %. A change of more than three times that applies to sizes whose latest
    prediction was correct."""
    t = table(noise=0.02)
    assert t.spread == pytest.approx(0.03, rel=0.05)
    for _ in range(3):
        t.observe(4, linear(4))
    t.observe(64, change * linear(64))
    t.observe(32, change * linear(32))
    assert t.seconds(4) == pytest.approx(after * linear(4), rel=0.03)


def test_observe_corrects_a_size_that_did_not_change() -> None:
    """If only other sizes have become slower, two batches of a size correct its prediction."""
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


def test_observe_recovers_from_a_stall_of_all_lanes() -> None:
    """Two batches that were computed at the same time were delayed by the same stall and agree with
    each other. Two more batches correct that."""
    t = table()
    t.observe(32, 50 * linear(32))
    t.observe(16, 50 * linear(16))
    assert t.seconds(4) > 10 * linear(4)
    t.observe(32, linear(32))
    t.observe(16, linear(16))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.1)


def test_observe_stays_bounded_if_small_batches_are_slower() -> None:
    """If small batches take longer than large ones, predictions stay between the fastest and the
    slowest batch."""
    t = table()
    for _ in range(200):
        t.observe(64, linear(32))
        t.observe(32, linear(64))
        t.observe(16, linear(64))
    assert all(0.9 * linear(1) < seconds < 1.5 * linear(64) for seconds in times(t))
    assert t.seconds(16) > 0.9 * linear(32)


def test_observe_of_one_size_hardly_changes_a_distant_one() -> None:
    """Many slow single items leave the full batch where it was."""
    t = table()
    for _ in range(100):
        t.observe(1, 1.5 * linear(1))
    assert t.seconds(1) == pytest.approx(1.5 * linear(1), rel=0.05)
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.02)


@pytest.mark.parametrize("slowdown", [2.0, 3.0, 6.0, 50.0])
@pytest.mark.parametrize("running", [(1,), (1, 2), (1, 2, 4, 8), (8, 16, 32)])
def test_best_tries_a_slow_size_again(slowdown: float, running: tuple[int, ...]) -> None:
    """However slow it was, and whichever sizes run since the device has recovered."""
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


def test_patience_is_not_raised_by_a_slow_moment() -> None:
    """Only a size that is still slow when it is tried again is left alone for longer."""
    t = table()
    for _ in range(2):
        for _ in range(2):
            t.observe(64, 3 * linear(64))
        assert t.seconds(64) > 2 * linear(64)
        for _ in range(40):
            t.observe(1, linear(1))
        assert t.seconds(64) == pytest.approx(linear(64), rel=0.05)
        t.observe(64, linear(64))


def test_patience_doubles_for_a_size_that_is_still_slow() -> None:
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


def test_table_recovers_from_a_slow_warm_up() -> None:
    """If the warm-up was slow because of other load, sizes that do not run are corrected together
    with those that do."""
    t = LatencyTable({b: [20 * linear(b)] * 3 for b in BUCKETS})
    for _ in range(64):
        t.observe(1, linear(1))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.1)


def test_patience_counts_from_the_warm_up() -> None:
    """A size that never ran is stale 32 batches after the warm-up."""
    t = LatencyTable({b: [20 * linear(b)] * 3 for b in BUCKETS})
    for _ in range(32):
        t.observe(1, linear(1))
    assert t.seconds(64) > 10 * linear(64)
    t.observe(1, linear(1))
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.1)


def test_best_tries_a_slow_size_ever_more_rarely() -> None:
    """Full batches that are inefficient are tried again and again, but ever more rarely."""
    t = table()
    tried = []
    for n in range(6000):
        size = t.best(64)
        t.observe(size, (6.0 if size == 64 else 1.0) * linear(size))
        tried += [n] if size == 64 else []
    late = [n for n in tried if n > 2000]
    assert 0 < len(late) < 0.003 * 4000


def test_observe_does_not_compare_distant_outliers() -> None:
    """An outlier long ago does not confirm another."""
    t = table()
    t.observe(64, 50 * linear(64))
    for _ in range(64):
        t.observe(1, linear(1))
    t.observe(64, 50 * linear(64))
    assert t.seconds(64) == pytest.approx(linear(64), rel=0.02)


def test_observe_learns_opposite_errors_of_two_sizes() -> None:
    """Errors of alternating sizes do not cancel each other."""
    t = table()
    for _ in range(20):
        t.observe(1, 0.8 * linear(1))
        t.observe(64, 1.3 * linear(64))
    assert t.seconds(1) == pytest.approx(0.8 * linear(1), rel=0.06)
    assert t.seconds(64) == pytest.approx(1.3 * linear(64), rel=0.06)


def test_observe_is_stable_under_noise() -> None:
    """A thousand noisy batches leave the table within 8 %, and in order."""
    t, random_ = table(), random.Random(1)
    for _ in range(1000):
        size = random_.choice(BUCKETS)
        t.observe(size, linear(size) * random_.gauss(1, 0.05))
        assert times(t) == sorted(times(t))
    assert times(t) == pytest.approx([linear(b) for b in BUCKETS], rel=0.08)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_observe_ignores_impossible_times(seconds: float) -> None:
    """Zero seconds mean a coarse clock, not a fast engine."""
    t = table()
    for _ in range(5):
        t.observe(64, seconds)
    assert times(t) == times(table())


def test_spread_is_that_of_the_typical_bucket() -> None:
    """One noisy bucket does not affect the others."""
    t = LatencyTable({1: [1, 1.1, 0.9], 2: [1, 5, 9], 4: [2, 2.2, 1.8]})
    assert t.spread == pytest.approx(0.148, abs=0.001)


@pytest.mark.parametrize(
    ("runs", "distance"), [([0.98, 1.0, 1.1], 0.06), ([1.0, 1.2], 0.1 / 1.1), ([1.0], 0.0)]
)
def test_spread_leaves_out_the_median_run(runs: list[float], distance: float) -> None:
    """Its distance to itself is 0. With an even number of runs the median is not one of them."""
    spread = LatencyTable({1: runs}).spread
    assert spread == pytest.approx(max(1.4826 * distance, 0.01))


def test_margin_is_exceeded_by_one_batch_in_a_hundred() -> None:
    """For any spread and from any start."""
    for sigma in (0.02, 0.05, 0.2):
        margin, random_ = Margin(0.05), random.Random(2)
        late = 0
        for n in range(20_000):
            actual = random_.gauss(1, sigma)
            late += n >= 5000 and actual > 1 + margin.share
            margin.observe(1.0, actual)
        assert 0.005 < late / 15_000 < 0.02


def test_margin_rises_by_a_fifth_with_a_late_batch() -> None:
    """A hundred batches in time lower it again."""
    margin = Margin(0.1)
    margin.observe(1.0, 1.4)
    assert margin.share == pytest.approx(0.3 * 1.22, rel=0.01)
    for _ in range(99):
        margin.observe(1.0, 1.3)
    assert margin.share == pytest.approx(0.3)


def test_margin_counts_late_batches_in_a_row_once() -> None:
    """A slow-down is for the table to learn. The margin would remember it for too long."""
    once, often = Margin(0.05), Margin(0.05)
    once.observe(1.0, 9.0)
    for _ in range(10):
        often.observe(1.0, 9.0)
    assert once.share > 1.1 * Margin(0.05).share
    assert often.share <= once.share


def test_margin_stays_within_its_limits() -> None:
    """From 0.01 up to the predicted time itself."""
    margin = Margin(0.0)
    assert margin.share == 0.01
    for _ in range(1000):
        margin.observe(1.0, 9.0)
        margin.observe(1.0, 1.0)
        assert margin.share <= 1.0
    assert margin.share == pytest.approx(1.0, rel=0.01)
