"""LatencyTable and Margin: how long the engine takes, measured at warm-up and corrected by every
batch. Pure: nothing here asks for the time.

`LatencyTable` predicts T(n), the seconds that a batch of n items takes. Its rules:
- A larger batch is never predicted to be faster than a smaller one.
- One outlier changes nothing: an error is corrected only as far as the previous error agrees.
- A batch corrects the prediction for another size only by the ratio of the two sizes. So a long
  series of single items says little about a full batch.
- A lasting change, such as a throttled device, is followed within a few batches. An error that two
  sizes in a row agree on applies to all sizes. If it may be noise, it does not apply to sizes whose
  latest batch was predicted correctly.
- A size that was slow is tried again. If it has not run for many batches, it is predicted to be no
  slower than the sizes that do run, in the proportions of the warm-up.

`Margin` learns how reliable T(n) is: the share of a predicted time to keep in reserve.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import median

MIN_SPLIT_GAIN = 0.1
"""Share of its time that computing a batch in two must save. A smaller gain may be noise."""

PATIENCE, MAX_PATIENCE = 32, 1024
"""Batches of other sizes after which a size counts as stale. The number doubles each time that a
stale size turns out to be as slow as it was."""
SLOWER = 1.2
"""Factor by which a stale size must look slower than the others to be corrected. A smaller factor
may be noise."""

BEYOND_NOISE = 3
"""Standard deviations of a batch's time at warm-up. An error that two sizes agree on is not noise
if it is larger. With 0, small errors of a noisy engine would spread from size to size."""

NORMAL = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""


class LatencyTable:
    """T(n) for each bucket, that is, for each size that the engine pads batches to."""

    def __init__(self, samples: Mapping[int, Sequence[float]]) -> None:
        """
        Args:
            samples: For each bucket the seconds of some batches, at least one and better three.

        Raises:
            ValueError: There is no bucket, a bucket has no sample, or a number is not positive.
        """
        if not samples or min(samples) < 1 or not all(samples.values()):
            raise ValueError("every bucket needs a size of at least 1 and at least one sample")
        if not all(0 < seconds < math.inf for runs in samples.values() for seconds in runs):
            raise ValueError("a sample must be a positive number of seconds")
        self.buckets = tuple(sorted(samples))
        self._measured = [median(samples[bucket]) for bucket in self.buckets]
        self._at_warm_up = list(self._measured)
        self._latest: dict[int, tuple[int, float]] = {}  # kind -> bucket and seconds of a batch
        self._last_kind = 0
        self._batches = 0
        self._last_ran: dict[int, int] = {}  # kind -> number of its latest batch
        self._patience: dict[int, int] = {}
        self.spread = max(_spread(samples.values()), 0.01)
        """Relative standard deviation of a batch's time at warm-up."""
        self._derive()

    @property
    def largest(self) -> int:
        """The largest bucket."""
        return self.buckets[-1]

    def bucket(self, size: int) -> int:
        """The size that a batch of `size` is padded to."""
        return self.buckets[bisect_left(self.buckets, size)]

    def seconds(self, size: int) -> float:
        """T(size), including the time for padding; 0 for no items."""
        return self._seconds[size]

    def largest_within(self, seconds: float) -> int:
        """The largest batch that takes at most `seconds`; 0 if none does."""
        return bisect_right(self._seconds, seconds) - 1 if seconds >= 0 else 0

    def best(self, size: int) -> int:
        """How many of `size` items to compute in the next batch.

        All of them, unless two batches would clearly take less time than one, because of padding or
        because larger batches are less efficient.
        """
        if (best := self._best.get(size)) is None:
            first = min(self._ways_to_split(size), key=lambda n: self._in_two(n, size))
            split = self._in_two(first, size) < (1 - MIN_SPLIT_GAIN) * self._seconds[size]
            best = self._best[size] = self.best(first) if split else size
        return best

    def keeps_up_with(self, rate: float) -> int:
        """The smallest batch size that computes `rate` items per second, or else the best size."""
        index = bisect_left(self._rates, rate)
        if index == len(self.buckets):
            return self.best(self.largest)
        bucket = self.buckets[index]
        return min(max(1, math.ceil(rate * self._seconds[bucket])), bucket)

    @property
    def most_efficient(self) -> int:
        """The smallest bucket that computes the maximum number of items per second."""
        return self.buckets[bisect_left(self._rates, self._rates[-1])]

    def as_dict(self) -> dict[int, float]:
        """T(n) for each bucket."""
        return {bucket: self._seconds[bucket] for bucket in self.buckets}

    def observe(self, size: int, seconds: float) -> None:
        """Learn that a batch of `size` took `seconds`.

        Buckets with the same number of bits, such as 4 to 7, count as one size here.
        """
        if not 0 < seconds < math.inf:
            return  # shorter than the clock's resolution
        bucket = self.bucket(size)
        kind = bucket.bit_length()
        errors = {kind: self._error(*latest) for kind, latest in self._latest.items()}
        error = self._error(bucket, seconds)
        if kind in self._last_ran and kind not in self._latest:
            self._update_patience(kind, error)
        own = _common(error, errors.get(kind, 0.0))
        shared = (
            0.0 if kind == self._last_kind else _common(error, errors.get(self._last_kind, 0.0))
        )
        errors[kind], self._latest[kind], self._last_kind = error, (bucket, seconds), kind
        certain = abs(shared) > BEYOND_NOISE * self.spread
        for i, other in enumerate(self.buckets):
            similarity = min(bucket, other) / max(bucket, other)
            previous = errors.get(other.bit_length(), shared)
            device = shared if certain else _common(shared, previous)
            self._measured[i] *= math.exp(self._correction(max(own * similarity, device, key=abs)))
        self._batches += 1
        self._last_ran[kind] = self._batches
        self._correct_stale_sizes(bucket)
        self._make_monotonic(bucket)
        self._derive()

    def _correct_stale_sizes(self, bucket: int) -> None:
        """Forget that stale sizes were slow: they are now predicted in proportion to `bucket`."""
        index = bisect_left(self.buckets, bucket)
        share = self._measured[index] / self._at_warm_up[index]
        for i, other in enumerate(self.buckets):
            kind = other.bit_length()
            if self._batches - self._last_ran.get(kind, 0) > self._patience.get(kind, PATIENCE):
                self._latest.pop(kind, None)
                if self._measured[i] > SLOWER * share * self._at_warm_up[i]:
                    self._measured[i] = share * self._at_warm_up[i]

    def _make_monotonic(self, bucket: int) -> None:
        """Where a small batch looks slower than a large one, trust `bucket`, which ran last.

        If both were kept, T(n) would be their mean: always too low for one and too high for the
        other. Corrections would then drive the two apart without end.
        """
        index = bisect_left(self.buckets, bucket)
        newest = self._measured[index]
        for i, seconds in enumerate(self._measured):
            self._measured[i] = min(seconds, newest) if i < index else max(seconds, newest)

    def _update_patience(self, kind: int, error: float) -> None:
        """A stale size has run again. If it is still slow, wait twice as long the next time."""
        still_slow = error >= math.log(SLOWER)
        patience = 2 * self._patience.get(kind, PATIENCE) if still_slow else PATIENCE
        self._patience[kind] = min(patience, MAX_PATIENCE)

    def _error(self, bucket: int, seconds: float) -> float:
        """Logarithm of measured by predicted seconds."""
        return math.log(seconds / self._seconds[bucket])

    def _correction(self, error: float) -> float:
        """The part of an error to correct: a small part if the error is as small as the noise."""
        return error * abs(error) / (abs(error) + self.spread)

    def _derive(self) -> None:
        """Compute the tables for lookups from the measured seconds."""
        self._seconds = [0.0]
        for bucket, seconds in zip(self.buckets, _never_decreasing(self._measured), strict=True):
            self._seconds += [seconds] * (bucket + 1 - len(self._seconds))
        rates = (bucket / self._seconds[bucket] for bucket in self.buckets)
        self._rates = list(accumulate(rates, max))  # maximum items per second, up to each bucket
        self._best = {0: 0, 1: 1}  # cache; `best` adds other sizes

    def _ways_to_split(self, size: int) -> tuple[int, int]:
        """Sizes of the first of two batches: the next smaller bucket, and one half."""
        index = bisect_left(self.buckets, size)
        return (self.buckets[index - 1] if index else 0), size // 2

    def _in_two(self, first: int, size: int) -> float:
        """Seconds for `first` items and then the remaining items of `size`."""
        return self._seconds[first] + self._seconds[size - first]


class Margin:
    """The share of its predicted time by which one batch in a hundred is late.

    Starts at three times the spread at warm-up. A late batch raises it by one step, a batch in time
    lowers it by a hundredth of a step. Late batches in a row count once: they are a change that the
    table learns.
    """

    MISSES = 0.01
    STEP = 0.2
    MINIMUM, MAXIMUM = 0.01, 1.0

    def __init__(self, spread: float) -> None:
        """
        Args:
            spread: Relative standard deviation of a batch's time at warm-up.
        """
        self._was_late = False
        self._set(3 * spread)

    def observe(self, predicted: float, actual: float) -> None:
        """Learn from a batch: its `predicted` and `actual` seconds."""
        late = actual > predicted * (1 + self.share)
        counts = late and not self._was_late
        self._was_late = late
        self._set(self.share * math.exp(self.STEP * (counts - self.MISSES)))

    def _set(self, share: float) -> None:
        self.share = min(max(share, self.MINIMUM), self.MAXIMUM)


def _common(error: float, other: float) -> float:
    """The smaller of two errors in the same direction; 0 for opposite directions."""
    return min(error, other, key=abs) if error * other > 0 else 0.0


def _spread(samples: Iterable[Sequence[float]]) -> float:
    """Relative standard deviation, from the distances of all runs to the median of their bucket.

    With an odd number of runs the median itself is one of them and is left out.
    """
    distances: list[float] = []
    for runs in samples:
        middle = median(runs)
        distances += sorted(abs(seconds - middle) / middle for seconds in runs)[len(runs) % 2 :]
    return NORMAL * median(distances) if distances else 0.0


def _never_decreasing(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never decreases: neighbors out of order get their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        count = 1
        while pools and pools[-1][0] > value:
            mean, members = pools.pop()
            value = (value * count + mean * members) / (count + members)
            count += members
        pools.append((value, count))
    return [mean for mean, members in pools for _ in range(members)]
