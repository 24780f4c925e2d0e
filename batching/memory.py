"""MemoryCap: limits the batch size after the device ran out of memory.

This module does no I/O and reads no clock: callers pass the current time.

A bucket is a size that the engine pads batches to. If a batch does not fit into memory, the limit
is lowered to the next smaller bucket for a pause of `PAUSE` seconds. After each pause, the limit
rises by one bucket. If memory runs out again while the limit is rising, the pause doubles, up to
`LONGEST_PAUSE`.
"""

from __future__ import annotations

from collections.abc import Sequence


class MemoryCap:
    """Limits the bucket for the batches of one engine. Times are in seconds."""

    PAUSE, LONGEST_PAUSE = 10.0, 640.0

    def __init__(self, buckets: Sequence[int]) -> None:
        """
        Args:
            buckets: Sizes that the engine pads batches to, in increasing order.
        """
        self.unlimited = True
        """Whether memory has never run out. While true, `limit` returns the largest bucket."""
        self._buckets = buckets
        self._capped_to = len(buckets) - 1
        self._since = 0.0
        self._pause = self.PAUSE

    def limit(self, now: float) -> int:
        """Return the largest bucket that may be used at the time `now`."""
        return self._buckets[self._index(now)]

    def ran_out(self, bucket: int, now: float) -> None:
        """Record that a batch padded to `bucket` did not fit into memory at the time `now`."""
        self.unlimited = False
        index = min(self._index(now), self._buckets.index(bucket) - 1)
        steps_up = len(self._buckets) - 1 - self._capped_to
        elapsed = now - self._since
        if elapsed >= (steps_up + 1) * self._pause:  # the largest bucket fitted for a whole pause
            self._pause = self.PAUSE
        elif elapsed >= self._pause:
            self._pause = min(2 * self._pause, self.LONGEST_PAUSE)
        self._capped_to = max(index, 0)
        self._since = now

    def _index(self, now: float) -> int:
        steps = int((now - self._since) / self._pause)
        return min(self._capped_to + steps, len(self._buckets) - 1)
