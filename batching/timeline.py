"""What the engine is busy with, and when it will be free. Pure: it is told the time.

The engine computes batches one at a time, in the order it got them; a batch handed over while
another computes begins when that one ends. From each batch that ends, the latency table and the
margin learn; one that began before a `switch` teaches nothing, since another engine computed it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from batching.latency import LatencyTable, Margin

PROBE = 1.0
"""Seconds after which an idle engine counts as unheard of."""


@dataclass(slots=True, eq=False)
class Flight:
    """A batch in the engine's hands."""

    size: int
    handed: float
    begins: float
    seconds: float
    table: LatencyTable

    @property
    def ends(self) -> float:
        """Predicted, not promised."""
        return self.begins + self.seconds


class Timeline:
    def __init__(self, table: LatencyTable) -> None:
        self.table = table
        self.margin = Margin(table.spread)
        self._flights: list[Flight] = []
        self._owed = 0.0
        self._idle_since: float | None = None
        self._busy = 0.0
        self._busy_since = 0.0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def current(self) -> Flight | None:
        """What it computes at the moment."""
        return self._flights[0] if self._flights else None

    def switch(self, table: LatencyTable) -> None:
        """What begins from now on takes what `table` says."""
        self.table = table
        self.margin = Margin(table.spread)

    def free_at(self, now: float) -> float:
        """When the engine is done with all it has, and with what it has yet to compute again."""
        return self._done_at(now) + self._owed

    def unheard(self, now: float) -> bool:
        """Has the engine been idle for so long that what was learned may no longer hold?"""
        if self._idle_since is None:
            self._idle_since = now
        return not self._flights and now - self._idle_since > PROBE

    @contextmanager
    def owing(self, size: int) -> Iterator[None]:
        """Within, a batch of `size` is still to be handed over: half of one that failed."""
        seconds = self.table.seconds(size)
        self._owed += seconds
        try:
            yield
        finally:
            self._owed -= seconds

    def _done_at(self, now: float) -> float:
        """When it is done with all it has.

        What is late by some time is expected to be late by as much again, so that an engine that
        hangs soon has no deadline left that it could meet.
        """
        if not self._flights:
            return now
        ends = self._flights[0].ends
        if ends < now:
            ends += 2 * (now - ends)
        return ends + sum(flight.seconds for flight in self._flights[1:])

    def runs_dry_at(self, now: float) -> float:
        """When the engine may be out of work at the earliest."""
        early = self.margin.share * sum(flight.seconds for flight in self._flights)
        return self.free_at(now) - early

    def busy_seconds(self, now: float) -> float:
        """How long the engine has had a batch, in all."""
        return self._busy + (now - self._busy_since if self._flights else 0.0)

    def begin(self, size: int, now: float) -> Flight:
        """A batch of `size` has been handed over."""
        if not self._flights:
            self._busy_since = now
        flight = Flight(size, now, self._done_at(now), self.table.seconds(size), self.table)
        self._flights.append(flight)
        return flight

    def end(self, flight: Flight, now: float, *, computed: bool) -> None:
        """It has come back; `computed` unless the engine failed, which teaches nothing either."""
        if computed and flight.table is self.table:
            began = flight.begins if flight is self._flights[0] else flight.handed
            self.table.observe(flight.size, now - began)
            self.margin.observe(flight.seconds, now - began)
        self._flights.remove(flight)
        if self._flights:
            self._flights[0].begins = max(self._flights[0].handed, now)
        else:
            self._idle_since = now
            self._busy += now - self._busy_since
