"""Arrivals: the average time between two items that arrive. Pure: callers pass the current time."""

from __future__ import annotations

import math


class Arrivals:
    """Counts arrivals, accepted or not, with a weight that decays exponentially."""

    def __init__(self, memory: float) -> None:
        """
        Args:
            memory: Seconds after which an arrival's weight has decayed to 1/e.
        """
        self._memory = memory
        self._count = 0.0
        self._last = -math.inf

    def record(self, now: float) -> None:
        """Count one item that arrives at `now`."""
        self._count = self._decayed(now) + 1
        self._last = now

    def gap(self, now: float) -> float:
        """Average seconds between two items; infinity if none has arrived."""
        count = self._decayed(now)
        return self._memory / count if count else math.inf

    def _decayed(self, now: float) -> float:
        return self._count * math.exp((self._last - now) / self._memory)
