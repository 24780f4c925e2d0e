"""How long the engine takes: measured at warm-up, corrected by every batch. Pure.

LatencyTable answers for T(n), the seconds a batch of n items takes. It promises that
- a larger batch never looks faster than a smaller one;
- one outlier moves nothing: an error is believed only as far as an earlier one agrees with it;
- what one size teaches counts for another only in the ratio of the two sizes: a quiet hour of
  single items says next to nothing about a full batch;
- a lasting change, such as a throttled device, is followed within a few batches: an error that
  two sizes in a row agree on is the device's, and counts for all; one that may be noise does not
  for those that were right when they last ran;
- no size is avoided for ever because it was slow once: one that has not run for long is taken to
  be no slower than those that do, in the proportions of the warm-up, and so is tried again.

Margin answers for how far T(n) can be trusted: the share of a predicted time to keep in reserve.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import median

WORTH_SPLITTING = 0.1
"""Share of its time that computing a batch in two must save. Less may be noise."""

PATIENCE, MOST_PATIENCE = 32, 1024
"""Batches after which what was heard of a size that has not run since is forgotten. Twice as many
each time that it turns out to have been true."""
SLOWER = 1.2
"""By how much such a size must look slower than the others to be doubted. Less may be noise."""

BEYOND_NOISE = 3
"""Standard deviations, of a batch's time at warm-up, beyond which an error that two sizes agree on
is none of noise's. With 0, small errors of a noisy engine wander from size to size."""

NORMAL = 1.4826
"""A normal distribution's standard deviation, in median absolute deviations."""


class LatencyTable:
    """T(n) by bucket: the sizes that the engine pads batches to."""

    def __init__(self, samples: Mapping[int, Sequence[float]]) -> None:
        """`samples`: for each bucket the seconds of some batches, best three or more."""
        if not samples or min(samples) < 1 or not all(samples.values()):
            raise ValueError("every bucket needs a size of at least 1 and at least one sample")
        if not all(0 < seconds < math.inf for runs in samples.values() for seconds in runs):
            raise ValueError("a sample must be a positive number of seconds")
        self.buckets = tuple(sorted(samples))
        self._measured = [median(samples[bucket]) for bucket in self.buckets]
        self._at_warm_up = list(self._measured)
        self._heard: dict[int, tuple[int, float]] = {}
        self._last = 0
        self._batches = 0
        self._ran: dict[int, int] = {}
        self._patience: dict[int, int] = {}
        self.spread = max(_spread(samples.values()), 0.01)
        """Relative standard deviation of a batch's time at warm-up."""
        self._settle()

    @property
    def largest(self) -> int:
        return self.buckets[-1]

    def bucket(self, size: int) -> int:
        """What a batch of `size` is padded to."""
        return self.buckets[bisect_left(self.buckets, size)]

    def seconds(self, size: int) -> float:
        return self._seconds[size]

    def largest_within(self, seconds: float) -> int:
        """The largest batch that takes at most `seconds`; 0 if none does."""
        return bisect_right(self._seconds, seconds) - 1 if seconds >= 0 else 0

    def best(self, size: int) -> int:
        """How many of `size` to compute now: all, unless two batches would clearly be done sooner
        than one, be it because of padding or because the engine gets worse with size."""
        if (found := self._best.get(size)) is None:
            first = min(self._halves(size), key=lambda n: self._in_two(n, size))
            split = self._in_two(first, size) < (1 - WORTH_SPLITTING) * self._seconds[size]
            found = self._best[size] = self.best(first) if split else size
        return found

    def keeps_up_with(self, rate: float) -> int:
        """The smallest batch whose items a second reach `rate`; the best one if none does."""
        place = bisect_left(self._rates, rate)
        if place == len(self.buckets):
            return self.best(self.largest)
        bucket = self.buckets[place]
        return min(max(1, math.ceil(rate * self._seconds[bucket])), bucket)

    @property
    def most_efficient(self) -> int:
        """The bucket that computes the most items a second; of several the smallest."""
        return self.buckets[bisect_left(self._rates, self._rates[-1])]

    def as_dict(self) -> dict[int, float]:
        return {bucket: self._seconds[bucket] for bucket in self.buckets}

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` has taken `seconds`."""
        if not 0 < seconds < math.inf:
            return  # shorter than the clock can tell
        bucket = self.bucket(size)
        kind = bucket.bit_length()
        errors = {kind: self._error(*heard) for kind, heard in self._heard.items()}
        error = self._error(bucket, seconds)
        if kind in self._ran and kind not in self._heard:
            self._learn_patience(kind, error)
        own = _agreed(error, errors.get(kind, 0.0))
        shared = 0.0 if kind == self._last else _agreed(error, errors.get(self._last, 0.0))
        errors[kind], self._heard[kind], self._last = error, (bucket, seconds), kind
        certain = abs(shared) > BEYOND_NOISE * self.spread
        for i, other in enumerate(self.buckets):
            likeness = min(bucket, other) / max(bucket, other)
            before = errors.get(other.bit_length(), shared)
            device = shared if certain else _agreed(shared, before)
            self._measured[i] *= math.exp(self._step(max(own * likeness, device, key=abs)))
        self._batches += 1
        self._ran[kind] = self._batches
        self._doubt_the_stale(bucket)
        self._agree_with(bucket)
        self._settle()

    def _doubt_the_stale(self, ran: int) -> None:
        """Forget that a size was slow that has not run for long, by the example of `ran`."""
        place = bisect_left(self.buckets, ran)
        share = self._measured[place] / self._at_warm_up[place]
        for i, other in enumerate(self.buckets):
            kind = other.bit_length()
            if self._batches - self._ran.get(kind, 0) > self._patience.get(kind, PATIENCE):
                self._heard.pop(kind, None)
                if self._measured[i] > SLOWER * share * self._at_warm_up[i]:
                    self._measured[i] = share * self._at_warm_up[i]

    def _agree_with(self, ran: int) -> None:
        """Where a small batch looks slower than a large one, the one that ran last is right.

        Were both kept, T(n) would be a mean of them, always too low for the one and too high for
        the other, and correcting it would drive the two apart for ever.
        """
        place = bisect_left(self.buckets, ran)
        newest = self._measured[place]
        for i, seconds in enumerate(self._measured):
            self._measured[i] = min(seconds, newest) if i < place else max(seconds, newest)

    def _learn_patience(self, kind: int, error: float) -> None:
        """A size has run for the first time since it was forgotten: was that right?"""
        right = error < math.log(SLOWER)
        patience = PATIENCE if right else 2 * self._patience.get(kind, PATIENCE)
        self._patience[kind] = min(patience, MOST_PATIENCE)

    def _error(self, bucket: int, seconds: float) -> float:
        """By how much the table is wrong about that, as a logarithm."""
        return math.log(seconds / self._seconds[bucket])

    def _step(self, error: float) -> float:
        """How much of an error to correct: little of one as small as the noise."""
        return error * abs(error) / (abs(error) + self.spread)

    def _settle(self) -> None:
        """Derive what is looked up from what was measured."""
        self._seconds = [0.0]
        for bucket, seconds in zip(self.buckets, _never_decreasing(self._measured), strict=True):
            self._seconds += [seconds] * (bucket + 1 - len(self._seconds))
        rates = (bucket / self._seconds[bucket] for bucket in self.buckets)
        self._rates = list(accumulate(rates, max))  # the most items a second, up to each bucket
        self._best = {0: 0, 1: 1}  # of the others, those that are asked for

    def _halves(self, size: int) -> tuple[int, int]:
        """How many to take first of `size` in two batches: without padding, or the half."""
        place = bisect_left(self.buckets, size)
        return (self.buckets[place - 1] if place else 0), size // 2

    def _in_two(self, first: int, size: int) -> float:
        """Seconds for `first` items and then the rest of `size`."""
        return self._seconds[first] + self._seconds[size - first]


class Margin:
    """The share of a predicted time by which one batch in a hundred overruns it.

    Starts from the spread at warm-up and follows what happens: up by a step with an overrun, down
    by a hundredth of it with every batch that kept its time. Overruns in a row count once: they
    are a change that the table is about to learn.
    """

    MISSES = 0.01
    STEP = 0.2
    LEAST, MOST = 0.01, 1.0

    def __init__(self, spread: float) -> None:
        self._overran = False
        self._set(3 * spread)

    def observe(self, predicted: float, actual: float) -> None:
        overran = actual > predicted * (1 + self.share)
        news = overran and not self._overran
        self._overran = overran
        self._set(self.share * math.exp(self.STEP * (news - self.MISSES)))

    def _set(self, share: float) -> None:
        self.share = min(max(share, self.LEAST), self.MOST)


def _agreed(error: float, before: float) -> float:
    """What two errors have in common."""
    return min(error, before, key=abs) if error * before > 0 else 0.0


def _spread(samples: Iterable[Sequence[float]]) -> float:
    """From how far the runs of each bucket are from their median, all buckets together. Where the
    median is one of the runs, that one says nothing."""
    distances: list[float] = []
    for runs in samples:
        middle = median(runs)
        distances += sorted(abs(seconds - middle) / middle for seconds in runs)[len(runs) % 2 :]
    return NORMAL * median(distances) if distances else 0.0


def _never_decreasing(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never decreases: neighbours that disagree share their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        count = 1
        while pools and pools[-1][0] > value:
            mean, members = pools.pop()
            value = (value * count + mean * members) / (count + members)
            count += members
        pools.append((value, count))
    return [mean for mean, members in pools for _ in range(members)]
