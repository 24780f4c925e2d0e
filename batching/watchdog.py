"""Watchdog: decides whether the engine is stalled or dead.

This module does no I/O and reads no clock: callers pass the current time.

The engine is stalled if one batch takes ten times its predicted time. While the engine is stalled,
new requests should go to another server. The engine recovers as soon as that batch ends.

The engine is dead if one batch takes a hundred times its predicted time. The likely causes are a
driver that hangs, a deadlock, or a device that was removed. Only a restart of the process helps.

Between two checks, the watchdog counts at most `STEP` seconds. If the process was suspended for a
minute, the engine could not run during that minute, so the minute must not count.
"""

from __future__ import annotations

from batching.timeline import InFlight

TIMES = 100.0
"""Multiple of a batch's predicted time after which the engine counts as dead."""
FLOOR = 10.0
"""Minimum number of seconds after which the engine counts as dead."""
STALLED_TIMES = 10.0
"""Multiple of a batch's predicted time after which the engine counts as stalled."""
STALLED_FLOOR = 5.0
"""Minimum number of seconds after which the engine counts as stalled."""
STEP = 2.0
"""Maximum number of seconds that the watchdog counts between two checks."""


class Watchdog:
    """Measures how long the oldest batch in flight has been running.

    A batch is in flight from its submission to the engine until the engine returns its results.
    """

    def __init__(self) -> None:
        self._batch: InFlight | None = None
        self._watched = 0.0
        self._checked_at = 0.0

    def check(self, batch: InFlight | None, now: float) -> bool:
        """Whether the engine is dead. Callers must call this method about once per second.

        Args:
            batch: The oldest batch in flight. None: no batch is in flight.
            now: Current time in seconds.
        """
        if batch is not self._batch:
            self._batch, self._watched = batch, 0.0
        else:
            self._watched += min(now - self._checked_at, STEP)
        self._checked_at = now
        return self._exceeds(batch, FLOOR, TIMES)

    def stalled(self, batch: InFlight | None) -> bool:
        """Whether the engine was stalled at the latest `check`.

        Args:
            batch: As in `check`. The result is False if the latest `check` was called with another
                batch.
        """
        return batch is self._batch and self._exceeds(batch, STALLED_FLOOR, STALLED_TIMES)

    def _exceeds(self, batch: InFlight | None, floor: float, times: float) -> bool:
        return batch is not None and self._watched > max(floor, times * batch.seconds)
