"""LatencyTable and Margin: predict how long the engine takes for a batch.

The engine is measured at warm-up, and every batch corrects the prediction. This module does no I/O
and reads no clock.

`LatencyTable` predicts T(n), the seconds that the engine takes for a batch of n items. The engine
pads each batch to a bucket, which is one of a few batch sizes. An error is the relative difference
between the measured and the predicted time of a batch. The rules of the table:
- A larger batch is never predicted to be faster than a smaller batch.
- A single outlier does not change a prediction. A prediction is corrected only if two errors in a
  row have the same sign, and only by the smaller of the two errors.
- A batch corrects the predictions for all buckets. The more a bucket's size differs from the
  batch's size, the smaller is the correction. Therefore, even thousands of one-item batches hardly
  change the prediction for a full batch.
- If the speed of the device changes, the predictions are correct again after a few batches. If two
  batches in a row have different sizes and the errors of both have the same sign, the predictions
  for all buckets are corrected by the smaller of the two errors. If this error is so small that it
  may be noise, buckets whose latest batch was predicted correctly are not corrected.
- A bucket is stale if many batches in a row did not use it. The prediction for a stale bucket is
  lowered to the prediction for the latest batch's bucket, multiplied by the ratio of the times of
  the two buckets at warm-up. Otherwise, a bucket that was slow for a while would never be used
  again.

`Margin` learns how reliable T(n) is. The margin is the extra time that is added to a prediction, as
a share of the predicted time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import median

MIN_SPLIT_GAIN = 0.1
"""Minimum share of a batch's time that a split into two batches must save. A smaller gain may be
noise."""

PATIENCE, MAX_PATIENCE = 32, 1024
"""Initial and maximum number of batches after which a bucket that was not used counts as stale. The
number doubles each time that a stale bucket is used again and is still slow."""
SLOWER = 1.2
"""The prediction for a stale bucket is lowered only if it is more than `SLOWER` times the
prediction that is derived from the latest batch. A smaller difference may be noise."""

BEYOND_NOISE = 3
"""Threshold for errors, as a number of standard deviations of a batch's time at warm-up. If the
errors of two batches of different sizes have the same sign and both exceed the threshold, the
errors are not noise. With a threshold of 0, small random errors would change the predictions for
all buckets."""

NORMAL = 1.4826
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""


class LatencyTable:
    """T(n), the predicted seconds of a batch of n items, up to the largest bucket."""

    def __init__(self, samples: Mapping[int, Sequence[float]]) -> None:
        """
        Args:
            samples: Bucket -> measured seconds of batches of that size. Each bucket needs at least
                one measurement; three or more are recommended.

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
        # Buckets whose sizes have the same number of binary digits, such as 4 to 7, form a kind.
        self._latest: dict[int, tuple[int, float]] = {}  # kind -> bucket and seconds
        self._last_kind = 0
        self._batches = 0
        self._last_ran: dict[int, int] = {}  # kind -> number of its latest batch
        self._patience: dict[int, int] = {}  # kind -> number of batches, see PATIENCE
        self.spread = max(_spread(samples.values()), 0.01)
        """Relative standard deviation of a batch's time at warm-up."""
        self._derive()

    @property
    def largest(self) -> int:
        """The largest bucket."""
        return self.buckets[-1]

    def bucket(self, size: int) -> int:
        """Return the bucket that a batch of `size` items is padded to."""
        return self.buckets[bisect_left(self.buckets, size)]

    def seconds(self, size: int) -> float:
        """Return T(size), which includes the time for padding. T(0) is 0."""
        return self._seconds[size]

    def largest_within(self, seconds: float) -> int:
        """Return the size of the largest batch that takes at most `seconds`.

        Returns 0 if even a batch of one item takes longer.
        """
        return bisect_right(self._seconds, seconds) - 1 if seconds >= 0 else 0

    def best(self, size: int) -> int:
        """Return the number of items for the next batch if `size` items wait.

        Returns `size`, unless two batches would clearly take less time than one batch. Two batches
        can be faster because they need less padding, or because large batches are inefficient.
        """
        if (best := self._best.get(size)) is None:
            first = min(self._ways_to_split(size), key=lambda n: self._in_two(n, size))
            split = self._in_two(first, size) < (1 - MIN_SPLIT_GAIN) * self._seconds[size]
            best = self._best[size] = self.best(first) if split else size
        return best

    def keeps_up_with(self, rate: float) -> int:
        """Return the smallest batch size at which the engine computes at least `rate` items/s.

        If no size is sufficient, returns `best(largest)`.
        """
        index = bisect_left(self._rates, rate)
        if index == len(self.buckets):
            return self.best(self.largest)
        bucket = self.buckets[index]
        return min(max(1, math.ceil(rate * self._seconds[bucket])), bucket)

    @property
    def most_efficient(self) -> int:
        """The smallest bucket at which the engine reaches its maximum throughput."""
        return self.buckets[bisect_left(self._rates, self._rates[-1])]

    def as_dict(self) -> dict[int, float]:
        """Return T(n) for each bucket."""
        return {bucket: self._seconds[bucket] for bucket in self.buckets}

    def observe(self, size: int, seconds: float) -> None:
        """Correct the predictions with a batch of `size` items that took `seconds`.

        Buckets whose sizes have the same number of binary digits, such as 4 to 7, count as one
        size.
        """
        if not 0 < seconds < math.inf:
            return  # 0: the batch took less than the resolution of the clock
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
        """Lower the predictions for stale buckets, based on `bucket`, the latest batch's bucket."""
        index = bisect_left(self.buckets, bucket)
        share = self._measured[index] / self._at_warm_up[index]
        for i, other in enumerate(self.buckets):
            kind = other.bit_length()
            if self._batches - self._last_ran.get(kind, 0) > self._patience.get(kind, PATIENCE):
                self._latest.pop(kind, None)
                if self._measured[i] > SLOWER * share * self._at_warm_up[i]:
                    self._measured[i] = share * self._at_warm_up[i]

    def _make_monotonic(self, bucket: int) -> None:
        """Adjust measured times that contradict the time of `bucket`, the latest batch's bucket.

        A contradiction is a smaller bucket that takes longer, or a larger bucket that takes less
        time. If both values were kept, T(n) would be the mean of the two values, which is always
        too low for one bucket and too high for the other. Corrections would then move the two
        values apart forever.
        """
        index = bisect_left(self.buckets, bucket)
        newest = self._measured[index]
        for i, seconds in enumerate(self._measured):
            self._measured[i] = min(seconds, newest) if i < index else max(seconds, newest)

    def _update_patience(self, kind: int, error: float) -> None:
        """Update `_patience` after a stale kind ran: double the value if the kind is still slow."""
        still_slow = error >= math.log(SLOWER)
        patience = 2 * self._patience.get(kind, PATIENCE) if still_slow else PATIENCE
        self._patience[kind] = min(patience, MAX_PATIENCE)

    def _error(self, bucket: int, seconds: float) -> float:
        """Return the logarithm of the measured seconds divided by the predicted seconds."""
        return math.log(seconds / self._seconds[bucket])

    def _correction(self, error: float) -> float:
        """Return the part of an error to correct. The part is small if the error may be noise."""
        return error * abs(error) / (abs(error) + self.spread)

    def _derive(self) -> None:
        """Derive the tables that other methods read, from the measured seconds."""
        self._seconds = [0.0]
        for bucket, seconds in zip(self.buckets, _never_decreasing(self._measured), strict=True):
            self._seconds += [seconds] * (bucket + 1 - len(self._seconds))
        rates = (bucket / self._seconds[bucket] for bucket in self.buckets)
        self._rates = list(accumulate(rates, max))  # maximum items per second, up to each bucket
        self._best = {0: 0, 1: 1}  # cache; `best` adds other sizes

    def _ways_to_split(self, size: int) -> tuple[int, int]:
        """Return two candidates for the size of the first batch if `size` items are split in two.

        The candidates are the next smaller bucket and half of the items.
        """
        index = bisect_left(self.buckets, size)
        return (self.buckets[index - 1] if index else 0), size // 2

    def _in_two(self, first: int, size: int) -> float:
        """Return the seconds of two batches: one of `first` items, one of `size - first` items."""
        return self._seconds[first] + self._seconds[size - first]


class Margin:
    """Learns `share`, the extra time for a batch as a share of its predicted time.

    A batch is late if it takes more than (1 + `share`) times the predicted time. Each late batch
    increases `share` by about 20 %, and every batch that is not late decreases `share` by 0.2 %. As
    a result, about one batch in a hundred is late. Several late batches in a row count as one late
    batch, because the table needs some batches to correct its predictions. At first, `share` is
    three times the relative standard deviation of a batch's time at warm-up.
    """

    MISSES = 0.01
    STEP = 0.2
    MINIMUM, MAXIMUM = 0.01, 1.0

    def __init__(self, spread: float) -> None:
        """
        Args:
            spread: Relative standard deviation of the time of a batch at warm-up.
        """
        self._was_late = False
        self._set(3 * spread)

    def observe(self, predicted: float, actual: float) -> None:
        """Learn from a batch with its `predicted` and `actual` seconds."""
        late = actual > predicted * (1 + self.share)
        counts = late and not self._was_late
        self._was_late = late
        self._set(self.share * math.exp(self.STEP * (counts - self.MISSES)))

    def _set(self, share: float) -> None:
        self.share = min(max(share, self.MINIMUM), self.MAXIMUM)


def _common(error: float, other: float) -> float:
    """Return the smaller of two errors, or 0 if the errors have opposite signs."""
    return min(error, other, key=abs) if error * other > 0 else 0.0


def _spread(samples: Iterable[Sequence[float]]) -> float:
    """Return the relative standard deviation of the seconds of a batch.

    The value is estimated from the distances of all samples to the median of their bucket. If a
    bucket has an odd number of samples, the median is one of the samples and is left out.
    """
    distances: list[float] = []
    for runs in samples:
        middle = median(runs)
        distances += sorted(abs(seconds - middle) / middle for seconds in runs)[len(runs) % 2 :]
    return NORMAL * median(distances) if distances else 0.0


def _never_decreasing(values: Sequence[float]) -> list[float]:
    """Return the nearest sequence that never decreases.

    Adjacent values that decrease are replaced by their mean.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        count = 1
        while pools and pools[-1][0] > value:
            mean, members = pools.pop()
            value = (value * count + mean * members) / (count + members)
            count += members
        pools.append((value, count))
    return [mean for mean, members in pools for _ in range(members)]
