"""What the engine is busy with, and when it will be free. Pure: it is told the time.

The engine computes as many batches at once as it has lanes, each in the order it got them; one
handed over while all compute begins when the first of them ends. From each batch that ends, the
latency table and the margin learn; one that began before a `switch` teaches nothing, since another
engine computed it. What a batch takes is not split by how many lanes compute: they are as many as
there are cores, and what is learned is about the load that there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heapreplace

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

    def expected_end(self, now: float) -> float:
        """What is late by some time is expected to be late by as much again, so that an engine that
        hangs soon has no deadline left that it could meet."""
        return max(self.ends, 2 * now - self.ends)


class Lanes:
    """When each lane is free, as far as is foreseen."""

    def __init__(self, free: list[float]) -> None:
        self._free = free
        heapify(free)

    @property
    def free_at(self) -> float:
        """When the first of them is."""
        return self._free[0]

    @property
    def done_at(self) -> float:
        """When all are."""
        return max(self._free)

    def take(self, seconds: float) -> None:
        """The one that is free first gets that much to do."""
        heapreplace(self._free, self._free[0] + seconds)

    def copy(self) -> Lanes:
        return Lanes(list(self._free))


class Timeline:
    def __init__(self, table: LatencyTable, lanes: int) -> None:
        self.table = table
        self.margin = Margin(table.spread)
        self._lanes = lanes
        self._flights: list[Flight] = []
        self._owed = 0.0
        self._idle_since: float | None = None
        self._busy = 0.0
        self._counted_at = 0.0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def current(self) -> Flight | None:
        """What it has been computing for longest."""
        return self._flights[0] if self._flights else None

    def switch(self, table: LatencyTable) -> None:
        """What begins from now on takes what `table` says."""
        self.table = table
        self.margin = Margin(table.spread)

    def free_at(self, now: float) -> float:
        """When the first lane is done with all it has, and with what is to be computed again."""
        return self.lanes(now).free_at

    def begins_at(self, now: float) -> float:
        """When a batch that is handed over now begins: before what is to be computed again."""
        return self._done(now).free_at

    def lanes(self, now: float) -> Lanes:
        """When each will be done with all it has, and with what is yet to be computed again."""
        lanes = self._done(now)
        if self._owed:
            lanes.take(self._owed)
        return lanes

    def drained_by(self, now: float) -> float:
        """When all lanes will be done with all they have, at the latest."""
        last, behind = now, self._owed
        for place, flight in enumerate(self._flights):
            if place < self._lanes:
                last = max(last, flight.expected_end(now))
            else:
                behind += flight.seconds
        return last + behind

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

    def _done(self, now: float) -> Lanes:
        """When each lane is done with all it has."""
        ends = [flight.expected_end(now) for flight in self._flights[: self._lanes]]
        lanes = Lanes(ends + [now] * (self._lanes - len(ends)))
        for flight in self._flights[self._lanes :]:
            lanes.take(flight.seconds)
        return lanes

    def runs_dry_at(self, now: float) -> float:
        """When the engine may be out of work at the earliest."""
        ahead = sum(flight.seconds for flight in self._flights) / self._lanes
        return self.free_at(now) - self.margin.share * ahead

    def lane_ends_at(self, now: float) -> float:
        """When the first batch was to end, if one computes and a lane is free beside it; else now.

        As it was predicted: one that hangs keeps nobody from the free lane."""
        beside = 0 < len(self._flights) < self._lanes
        return min(flight.ends for flight in self._flights) if beside else now

    def busy_seconds(self, now: float) -> float:
        """How long the engine has had work, in all; with it in half of its lanes, half of it."""
        share = min(len(self._flights), self._lanes) / self._lanes
        return self._busy + share * (now - self._counted_at)

    def begin(self, size: int, now: float) -> Flight:
        """A batch of `size` has been handed over."""
        self._count_busy(now)
        flight = Flight(size, now, self.begins_at(now), self.table.seconds(size), self.table)
        self._flights.append(flight)
        return flight

    def end(self, flight: Flight, now: float, *, computed: bool, done: float | None = None) -> None:
        """It has come back; `computed` unless the engine failed, which teaches nothing either.
        `done`: when the engine had computed it, if that was before `now`."""
        done = now if done is None else min(done, now)
        in_turn = flight in self._flights[: self._lanes]
        self._count_busy(now)
        self._flights.remove(flight)
        if self._flights:
            if in_turn and len(self._flights) >= self._lanes:  # the next one begins
                following = self._flights[self._lanes - 1]
                following.begins = max(following.handed, done)
        else:
            self._idle_since = now
        # Last: the flight has ended, even if learning from it raises.
        if computed and flight.table is self.table:
            began = flight.begins if in_turn else flight.handed
            self.table.observe(flight.size, done - began)
            self.margin.observe(flight.seconds, done - began)

    def forget(self, flight: Flight) -> None:
        """Remove a flight that `end` could not. A no-op for one that has ended."""
        if flight in self._flights:
            self._flights.remove(flight)

    def _count_busy(self, now: float) -> None:
        self._busy, self._counted_at = self.busy_seconds(now), now
