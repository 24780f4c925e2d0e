"""Watchdog: decides whether the engine is stalled or dead. Pure: callers pass the current time.

Stalled: one batch takes ten times its predicted time. New requests should go to another server.
The engine recovers as soon as that batch ends.

Dead: one batch takes a hundred times its predicted time. It will not return, because a driver
hangs, threads are deadlocked or the device is gone. Only a new process helps.

Time counts only between two checks that follow each other closely. If the whole process was stopped
or got no CPU for a minute, that minute does not count: the engine could not compute in it either.
"""

from __future__ import annotations

from batching.timeline import InFlight

TIMES = 100.0
"""Multiple of its predicted time after which a batch counts as dead."""
FLOOR = 10.0
"""Minimum number of seconds after which a batch counts as dead."""
STALLED_TIMES = 10.0
"""Multiple of its predicted time after which a batch counts as stalled."""
STALLED_FLOOR = 5.0
"""Minimum number of seconds after which a batch counts as stalled."""
STEP = 2.0
"""Maximum number of seconds that count between two checks."""


class Watchdog:
    """Watches the batch that the engine has computed for longest."""

    def __init__(self) -> None:
        self._batch: InFlight | None = None
        self._watched = 0.0
        self._checked_at = 0.0

    def check(self, batch: InFlight | None, now: float) -> bool:
        """Whether the engine is dead. Call this about once a second.

        Args:
            batch: The batch in flight that was handed over first; None if there is none.
            now: Current time in seconds.
        """
        if batch is not self._batch:
            self._batch, self._watched = batch, 0.0
        else:
            self._watched += min(now - self._checked_at, STEP)
        self._checked_at = now
        return self._exceeds(batch, FLOOR, TIMES)

    def stalled(self, batch: InFlight | None) -> bool:
        """Whether the engine is stalled, as of the latest `check`. `batch` is as in `check`."""
        return batch is self._batch and self._exceeds(batch, STALLED_FLOOR, STALLED_TIMES)

    def _exceeds(self, batch: InFlight | None, floor: float, times: float) -> bool:
        return batch is not None and self._watched > max(floor, times * batch.seconds)
