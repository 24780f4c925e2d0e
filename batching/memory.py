"""MemoryCap: the largest batch the device's memory is trusted with. Pure: it is told the time.

When a batch does not fit, the next smaller bucket is the largest for `pause` seconds; after that
one bucket more is tried at a time. Running out again on the way up doubles the pause.
"""

from __future__ import annotations

from collections.abc import Sequence


class MemoryCap:
    PAUSE, LONGEST_PAUSE = 10.0, 640.0

    def __init__(self, buckets: Sequence[int]) -> None:
        self._buckets = buckets
        self._capped_to = len(buckets) - 1
        self._since = 0.0
        self._pause = self.PAUSE

    def limit(self, now: float) -> int:
        return self._buckets[self._place(now)]

    def ran_out(self, bucket: int, now: float) -> None:
        """A batch of `bucket` did not fit."""
        place = min(self._place(now), self._buckets.index(bucket) - 1)
        steps_up = len(self._buckets) - 1 - self._capped_to
        paused = now - self._since
        if paused >= (steps_up + 1) * self._pause:  # back at the largest, and that held
            self._pause = self.PAUSE
        elif paused >= self._pause:
            self._pause = min(2 * self._pause, self.LONGEST_PAUSE)
        self._capped_to = max(place, 0)
        self._since = now

    def _place(self, now: float) -> int:
        steps = int((now - self._since) / self._pause)
        return min(self._capped_to + steps, len(self._buckets) - 1)
