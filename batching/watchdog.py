"""Watchdog: whether the engine is stalled or dead. Pure: it is told the time.

An engine is stalled when one batch takes ten times its predicted time: no new requests should be
routed to it. It recovers as soon as that batch ends.

A batch that takes a hundred times what it was predicted to will not come back: a driver that hangs,
a deadlock, a device that has gone. Late batches are for the policy, which refuses whoever
cannot be answered; this is about the moment after which only a new process helps.

Time counts only while somebody looks. A process that was stopped or starved for a minute finds on
waking that a minute has passed in which no engine could have computed anything.
"""

from __future__ import annotations

from batching.timeline import Flight

TIMES = 100.0
"""How many times its predicted time a batch may take,"""
FLOOR = 10.0
"""and seconds that it may take in any case: predictions are of milliseconds."""
STALLED_TIMES = 10.0
"""Multiple of its predicted time after which a batch counts as stalled."""
STALLED_FLOOR = 5.0
"""Minimum of seconds after which a batch counts as stalled."""
STEP = 2.0
"""Seconds that count at most between two looks."""


class Watchdog:
    def __init__(self) -> None:
        self._flight: Flight | None = None
        self._watched = 0.0
        self._looked_at = 0.0

    def look(self, flight: Flight | None, now: float) -> bool:
        """Has the engine died over `flight`, what it computes at the moment? To be asked every
        second or so."""
        if flight is not self._flight:
            self._flight, self._watched = flight, 0.0
        else:
            self._watched += min(now - self._looked_at, STEP)
        self._looked_at = now
        return self._exceeds(flight, FLOOR, TIMES)

    def stalled(self, flight: Flight | None) -> bool:
        """Has the engine made no progress on `flight`, what it computes at the moment, for long?"""
        return flight is self._flight and self._exceeds(flight, STALLED_FLOOR, STALLED_TIMES)

    def _exceeds(self, flight: Flight | None, floor: float, times: float) -> bool:
        return flight is not None and self._watched > max(floor, times * flight.seconds)
