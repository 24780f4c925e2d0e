"""Timeline: predicts when the engine is free, from the batches in flight. Pure: callers pass the
current time.

A lane is a part of the engine that computes one batch at a time. All lanes take batches from one
line, in the order in which they were handed over. So a batch that is handed over while all lanes
compute begins when the first lane is free.

The latency table and the margin learn from each batch that ends, except from batches that began
before a `switch`: another engine computed them. A batch's time is not divided by the number of
lanes that compute: every lane has a core of its own, and the table learns the time under load.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heapreplace

from batching.latency import LatencyTable, Margin

STALE_AFTER = 1.0
"""Seconds without a batch after which predictions count as stale."""


@dataclass(slots=True, eq=False)
class InFlight:
    """A batch that was handed to the engine and has not come back. Times are in seconds."""

    size: int
    handed: float
    """When it was handed over."""
    begins: float
    """When the engine is predicted to begin it."""
    seconds: float
    """Predicted time of computing it."""
    table: LatencyTable
    """The table that made the prediction."""

    @property
    def ends(self) -> float:
        """Predicted end, whether or not that has passed."""
        return self.begins + self.seconds

    def expected_end(self, now: float) -> float:
        """Predicted end. A batch that is late is expected to be late by as much again.

        So if an engine hangs, soon no deadline can be met.
        """
        return max(self.ends, 2 * now - self.ends)


class Lanes:
    """The time at which each lane is predicted to be free."""

    def __init__(self, free: list[float]) -> None:
        """
        Args:
            free: The time for each lane, in any order. The list is used and reordered.
        """
        self._free = free
        heapify(free)

    @property
    def free_at(self) -> float:
        """When the first lane is free."""
        return self._free[0]

    @property
    def done_at(self) -> float:
        """When all lanes are free."""
        return max(self._free)

    def take(self, seconds: float) -> None:
        """Give a batch that takes `seconds` to the lane that is free first."""
        heapreplace(self._free, self._free[0] + seconds)

    def copy(self) -> Lanes:
        return Lanes(list(self._free))


class Timeline:
    """The batches in flight, and what is learned when they end."""

    def __init__(self, table: LatencyTable, lanes: int) -> None:
        """
        Args:
            table: Predicts the seconds of a batch; learns from each batch.
            lanes: Batches that the engine computes at the same time.
        """
        self.table = table
        self.margin = Margin(table.spread)
        self._lanes = lanes
        self._in_flight: list[InFlight] = []
        self._reserved = 0.0
        self._idle_since: float | None = None
        self._busy = 0.0
        self._counted_at = 0.0

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def current(self) -> InFlight | None:
        """The batch in flight that was handed over first."""
        return self._in_flight[0] if self._in_flight else None

    def switch(self, table: LatencyTable) -> None:
        """Predict with `table` from the next batch on."""
        self.table = table
        self.margin = Margin(table.spread)

    def free_at(self, now: float) -> float:
        """When the first lane has computed its batches, including those to be computed again."""
        return self.lanes(now).free_at

    def begins_at(self, now: float) -> float:
        """When a batch handed over now begins. Batches to be computed again come after it."""
        return self._lanes_in_flight(now).free_at

    def lanes(self, now: float) -> Lanes:
        """When each lane has computed its batches, including those to be computed again."""
        lanes = self._lanes_in_flight(now)
        if self._reserved:
            lanes.take(self._reserved)
        return lanes

    def drained_by(self, now: float) -> float:
        """Upper bound of the time at which all lanes have computed their batches."""
        last, behind = now, self._reserved
        for index, batch in enumerate(self._in_flight):
            if index < self._lanes:
                last = max(last, batch.expected_end(now))
            else:
                behind += batch.seconds
        return last + behind

    def is_stale(self, now: float) -> bool:
        """Whether the engine has been idle for so long that predictions may no longer hold."""
        if self._idle_since is None:
            self._idle_since = now
        return not self._in_flight and now - self._idle_since > STALE_AFTER

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Within the block, predict that a batch of `size` is yet to be handed over.

        Used for the second half of a batch that failed, while the first half is computed again.
        """
        seconds = self.table.seconds(size)
        self._reserved += seconds
        try:
            yield
        finally:
            self._reserved -= seconds

    def _lanes_in_flight(self, now: float) -> Lanes:
        """When each lane has computed the batches in flight."""
        ends = [batch.expected_end(now) for batch in self._in_flight[: self._lanes]]
        lanes = Lanes(ends + [now] * (self._lanes - len(ends)))
        for batch in self._in_flight[self._lanes :]:
            lanes.take(batch.seconds)
        return lanes

    def runs_dry_at(self, now: float) -> float:
        """The earliest time at which the engine may have no more work."""
        ahead = sum(batch.seconds for batch in self._in_flight) / self._lanes
        return self.free_at(now) - self.margin.share * ahead

    def lane_ends_at(self, now: float) -> float:
        """If some lanes compute and others are free, the first predicted end; otherwise `now`.

        A batch that is late does not postpone this, so the free lanes are used if one lane hangs.
        """
        some_free = 0 < len(self._in_flight) < self._lanes
        return min(batch.ends for batch in self._in_flight) if some_free else now

    def busy_seconds(self, now: float) -> float:
        """Total seconds in which the engine computed. Counts half if half of the lanes compute."""
        share = min(len(self._in_flight), self._lanes) / self._lanes
        return self._busy + share * (now - self._counted_at)

    def begin(self, size: int, now: float) -> InFlight:
        """Record that a batch of `size` is handed to the engine."""
        self._count_busy(now)
        batch = InFlight(size, now, self.begins_at(now), self.table.seconds(size), self.table)
        self._in_flight.append(batch)
        return batch

    def end(
        self, batch: InFlight, now: float, *, computed: bool, computed_at: float | None = None
    ) -> None:
        """Record that `batch` came back.

        Args:
            batch: As returned by `begin`.
            now: Current time.
            computed: Whether the engine computed it. Nothing is learned from a failure.
            computed_at: When the engine finished it; None or a later time than `now` means `now`.
        """
        computed_at = now if computed_at is None else min(computed_at, now)
        in_lane = batch in self._in_flight[: self._lanes]
        self._count_busy(now)
        self._in_flight.remove(batch)
        if self._in_flight:
            if in_lane and len(self._in_flight) >= self._lanes:  # the next one begins
                following = self._in_flight[self._lanes - 1]
                following.begins = max(following.handed, computed_at)
        else:
            self._idle_since = now
        # Last: the batch has ended, even if learning from it raises.
        if computed and batch.table is self.table:
            began = batch.begins if in_lane else batch.handed
            self.table.observe(batch.size, computed_at - began)
            self.margin.observe(batch.seconds, computed_at - began)

    def forget(self, batch: InFlight) -> None:
        """Remove `batch` if `end` raised before it did. Does nothing if it has ended."""
        if batch in self._in_flight:
            self._in_flight.remove(batch)

    def _count_busy(self, now: float) -> None:
        self._busy, self._counted_at = self.busy_seconds(now), now
