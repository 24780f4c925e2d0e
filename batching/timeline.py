"""Timeline: predicts from the batches in flight when the engine will be free.

A batch is in flight from its submission to the engine until the engine returns its results. This
module does no I/O and reads no clock: callers pass the current time, in seconds.

A lane is a part of the engine that runs one batch at a time. The lanes share one first-in,
first-out queue of batches. If all lanes are busy when a batch is submitted to the engine, the batch
waits in this queue.

The latency table predicts the time of a batch. The margin is the extra time that is added to a
prediction, as a share of the predicted time. The table and the margin learn from each batch that
ends. They do not learn from batches that were submitted before a `switch`, because another engine
ran those batches.

The predicted time of a batch does not depend on the number of busy lanes. By default, the engine
has at most one lane per CPU core, and the table learns how long a batch takes while other lanes are
busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heapreplace

from batching.latency import LatencyTable, Margin

STALE_AFTER = 1.0
"""Seconds without a batch after which predictions count as stale, that is, out of date."""


@dataclass(slots=True, eq=False)
class InFlight:
    """A batch that was submitted to the engine and has not been returned yet."""

    size: int
    """Number of items in the batch."""
    handed: float
    """Time at which the batch was submitted to the engine."""
    begins: float
    """Time at which the engine is predicted to begin the batch."""
    seconds: float
    """Predicted seconds that the engine takes for the batch."""
    table: LatencyTable
    """The table that made the prediction."""

    @property
    def ends(self) -> float:
        """Predicted end of the batch. This time may be in the past."""
        return self.begins + self.seconds

    def expected_end(self, now: float) -> float:
        """Return the predicted end, or a later time if the batch is late.

        A batch that is n seconds late is expected to take another n seconds. As a result, if the
        engine hangs, all deadlines soon count as unreachable.
        """
        return max(self.ends, 2 * now - self.ends)


class Lanes:
    """Predicts the time at which each lane is free."""

    def __init__(self, free: list[float]) -> None:
        """
        Args:
            free: Time at which each lane is free, in any order. The list is modified.
        """
        self._free = free
        heapify(free)

    @property
    def free_at(self) -> float:
        """Time at which the first lane is free."""
        return self._free[0]

    @property
    def done_at(self) -> float:
        """Time at which all lanes are free."""
        return max(self._free)

    def take(self, seconds: float) -> None:
        """Assign a batch that takes `seconds` to the lane that is free first."""
        heapreplace(self._free, self._free[0] + seconds)

    def copy(self) -> Lanes:
        return Lanes(list(self._free))


class Timeline:
    """The batches in flight, and the predictions derived from them."""

    def __init__(self, table: LatencyTable, lanes: int) -> None:
        """
        Args:
            table: Predicts the seconds of a batch, and learns from each batch.
            lanes: Number of batches that the engine runs at the same time.
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
        """The oldest batch in flight; None if no batch is in flight."""
        return self._in_flight[0] if self._in_flight else None

    def switch(self, table: LatencyTable) -> None:
        """Predict with `table` from the next batch on."""
        self.table = table
        self.margin = Margin(table.spread)

    def free_at(self, now: float) -> float:
        """Return the time at which the first of `lanes(now)` is free."""
        return self.lanes(now).free_at

    def begins_at(self, now: float) -> float:
        """Return the predicted time at which a batch begins if it is submitted now.

        Reserved batches (see `reserve`) are submitted later, so they do not delay that batch.
        """
        return self._lanes_in_flight(now).free_at

    def lanes(self, now: float) -> Lanes:
        """Return the time at which each lane has finished its batches and the reserved batches."""
        lanes = self._lanes_in_flight(now)
        if self._reserved:
            lanes.take(self._reserved)
        return lanes

    def drained_by(self, now: float) -> float:
        """Return an upper bound of the time at which all of `lanes(now)` are free."""
        last, behind = now, self._reserved
        for index, batch in enumerate(self._in_flight):
            if index < self._lanes:
                last = max(last, batch.expected_end(now))
            else:
                behind += batch.seconds
        return last + behind

    def is_stale(self, now: float) -> bool:
        """Whether the engine has been idle for so long that predictions may be out of date."""
        if self._idle_since is None:
            self._idle_since = now
        return not self._in_flight and now - self._idle_since > STALE_AFTER

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve the time of a batch of `size` items within the block.

        If a batch fails, its two halves run one after the other. While the first half runs, the
        time of the second half is reserved.
        """
        seconds = self.table.seconds(size)
        self._reserved += seconds
        try:
            yield
        finally:
            self._reserved -= seconds

    def _lanes_in_flight(self, now: float) -> Lanes:
        """Return the time at which each lane has finished the batches in flight."""
        ends = [batch.expected_end(now) for batch in self._in_flight[: self._lanes]]
        lanes = Lanes(ends + [now] * (self._lanes - len(ends)))
        for batch in self._in_flight[self._lanes :]:
            lanes.take(batch.seconds)
        return lanes

    def runs_dry_at(self, now: float) -> float:
        """Return the earliest time at which a lane may have no batch to run."""
        ahead = sum(batch.seconds for batch in self._in_flight) / self._lanes
        return self.free_at(now) - self.margin.share * ahead

    def lane_ends_at(self, now: float) -> float:
        """Return the first predicted end of a batch if some lanes are free and others are busy.

        Otherwise, returns `now`. A batch that is late does not postpone the result. Therefore, free
        lanes are still used if another lane hangs.
        """
        some_free = 0 < len(self._in_flight) < self._lanes
        return min(batch.ends for batch in self._in_flight) if some_free else now

    def busy_seconds(self, now: float) -> float:
        """Return the seconds of computation so far, averaged over all lanes."""
        share = min(len(self._in_flight), self._lanes) / self._lanes
        return self._busy + share * (now - self._counted_at)

    def begin(self, size: int, now: float) -> InFlight:
        """Record that a batch of `size` items is submitted to the engine."""
        self._count_busy(now)
        batch = InFlight(size, now, self.begins_at(now), self.table.seconds(size), self.table)
        self._in_flight.append(batch)
        return batch

    def end(
        self, batch: InFlight, now: float, *, computed: bool, computed_at: float | None = None
    ) -> None:
        """Record that the engine returned `batch`.

        Args:
            batch: As returned by `begin`.
            now: Current time.
            computed: Whether the engine finished the batch. The table and the margin do not learn
                from failed batches.
            computed_at: Time at which the engine finished the batch. If the time is None or after
                `now`, `now` is used.
        """
        computed_at = now if computed_at is None else min(computed_at, now)
        in_lane = batch in self._in_flight[: self._lanes]
        self._count_busy(now)
        self._in_flight.remove(batch)
        if self._in_flight:
            if in_lane and len(self._in_flight) >= self._lanes:  # the next batch begins
                following = self._in_flight[self._lanes - 1]
                following.begins = max(following.handed, computed_at)
        else:
            self._idle_since = now
        # `observe` is called last, so that the batch counts as ended even if `observe` raises.
        if computed and batch.table is self.table:
            began = batch.begins if in_lane else batch.handed
            self.table.observe(batch.size, computed_at - began)
            self.margin.observe(batch.seconds, computed_at - began)

    def forget(self, batch: InFlight) -> None:
        """Remove `batch` if `end` raised an exception before it removed `batch`.

        Does nothing if `batch` has ended.
        """
        if batch in self._in_flight:
            self._in_flight.remove(batch)

    def _count_busy(self, now: float) -> None:
        self._busy, self._counted_at = self.busy_seconds(now), now
