"""Policy: decides when a batch is formed, how large it is, and which requests are rejected. Pure:
callers pass the current time.

All rules work on the deadlines of the items in the queue, in order. They plan batches for them from
the moment the engine is free. An item counts as in time if the predicted end of its batch plus the
margin is before its deadline. The rules:

- If the engine is idle, a batch is formed at once. If it is busy, the batch is formed just before
  the engine is free, so its size grows with the load.
- While some lanes compute, a free lane takes a batch only if that batch keeps up with the lane's
  share of the arrivals. A smaller batch waits for the first lane to end, unless a deadline is at
  stake. Lanes share the cores, so under load small batches waste them.
- A batch is as large as its first deadline and the memory allow. One item may be left for the next
  batch if padding for it would take longer.
- A new item is rejected in three cases: it would be late; it would make an accepted item late; or
  only a batch too small to keep up with the arrivals could compute it in time. Such a batch would
  cost more answers than it gives.
- If the engine has been idle for a while, one item is accepted whatever the prediction says. If the
  engine was slow, only another batch can show that it has recovered.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from batching.latency import LatencyTable
from batching.memory import MemoryCap
from batching.timeline import Lanes, Timeline

KEEPING_UP = 0.6
"""Share of the arrival rate that a batch must keep up with to be worth computing. Found by
simulation: with less, batches become small under overload; with more, too many items are rejected
just below it."""

ARRIVAL_MEMORY = 16
"""For how long arrivals are remembered, as a multiple of T(1). Found by simulation: with less,
every burst counts as overload; with more, overload counts as a burst."""

ACCEPTED_MARGIN = 0.5
"""Share of the margin that accepted items must still have. The margin was reserved for errors of
the prediction since then. If all of it were required again, one late batch would make the next
batch small, and others late."""

MAX_CHOICES = 16
"""Maximum number of alternatives that are compared when some items must be given up."""


class Policy:
    """The rules for one engine, with the state they need."""

    def __init__(self, table: LatencyTable, max_batch_size: int, lanes: int = 1) -> None:
        """
        Args:
            table: Predicts the seconds of a batch; learns from each batch.
            max_batch_size: Maximum number of items in a batch, at most `table.largest`.
            lanes: Batches that the engine computes at the same time.
        """
        self.table = table
        self.timeline = Timeline(table, lanes)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=ARRIVAL_MEMORY * table.seconds(1))
        self._max_batch_size = max_batch_size
        self._lanes = lanes

    def switch(self, table: LatencyTable) -> None:
        """Predict another engine with `table` from the next batch on.

        What was learned about the previous engine is dropped. Batches in flight still count.

        Raises:
            ValueError: Its buckets differ from those of the current table.
        """
        if table.buckets != self.table.buckets:
            raise ValueError(f"the buckets are {self.table.buckets}, not {table.buckets}")
        self.table = table
        self.timeline.switch(table)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=ARRIVAL_MEMORY * table.seconds(1))

    def seconds_late(self, deadlines: Sequence[float], deadline: float, now: float) -> float | None:
        """Seconds by which a new item would be late; None if it should be accepted.

        Args:
            deadlines: Deadlines in the queue; never decreasing.
            deadline: Deadline of the new item.
            now: Current time.
        """
        if not deadlines and deadline > now and self.timeline.is_stale(now):
            return None
        cap = self.size_limit(now)
        if self._surely_in_time(deadlines, deadline, cap, now):
            return None
        place = bisect_right(deadlines, deadline)
        lanes = self.timeline.lanes(now)
        if place == len(deadlines):
            ahead, lanes = self._skip_full_batches(deadlines, lanes, cap, now)
            deadlines, place = deadlines[ahead:], place - ahead
        deadlines = [*deadlines[:place], deadline, *deadlines[place:]]
        first = 0
        while first < len(deadlines):
            start = lanes.free_at
            # Items ahead are planned as `form_batch` will take them. With the whole margin, a batch
            # that has used up some of it would look smaller, and its other items lost.
            margin_share = ACCEPTED_MARGIN if first < place else 1.0
            allowed = self._allowed_size(deadlines[first], start, now, margin_share)
            needed = 1
            if first == place and allowed < cap:
                needed = max(1, self._min_worthwhile_size(deadline - now, cap, now))
            if allowed >= needed:
                size = self.table.best(min(allowed, cap, len(deadlines) - first))
                lanes.take(self.table.seconds(size))
                first += size
            elif first < place:  # lost with or without the new item, as are those due even earlier
                soonest = self._in_time(start + self.table.seconds(1), now)
                first = max(first + 1, bisect_left(deadlines, soonest, first, place))
            else:
                return self._in_time(start + self.table.seconds(needed), now) - deadlines[first]
        return None

    def _surely_in_time(
        self, deadlines: Sequence[float], deadline: float, cap: int, now: float
    ) -> bool:
        """Whether all items would be in time, even if the longest batch came after all others.

        A shortcut: if deadlines are far off, or few items wait, no batches need be planned.

        Full batches and one for the remaining items bound the total time. If the remaining items
        are computed in several batches, `LatencyTable.best` found that to take less.
        """
        full = self.table.seconds(cap)
        batches = len(deadlines) // self.table.best(cap) + 2
        end = self.timeline.drained_by(now) + batches * full
        return self._in_time(end, now) <= (min(deadlines[0], deadline) if deadlines else deadline)

    def _skip_full_batches(
        self, deadlines: Sequence[float], lanes: Lanes, cap: int, now: float
    ) -> tuple[int, Lanes]:
        """How many of the first items are computed in full batches whatever comes after them, and
        the lanes after those batches. 0 if that is not certain.

        A shortcut: for a new item at the end of a long queue, not every batch need be planned.
        """
        size = self.table.best(cap)
        batches = (len(deadlines) - cap) // size + 1
        if batches < 2:
            return 0, lanes
        after = lanes.copy()
        for _ in range(batches - 1):
            after.take(self.table.seconds(size))
        if self._allowed_size(deadlines[0], after.free_at, now, ACCEPTED_MARGIN) < cap:
            return 0, lanes  # the first deadline would not allow a full batch at the end
        after.take(self.table.seconds(size))
        return batches * size, after

    def drained_at(self, waiting: int, now: float) -> float:
        """When the batches in flight and `waiting` more items will have been computed."""
        full, rest = divmod(waiting, size := self.table.best(self.size_limit(now)))
        lanes = self.timeline.lanes(now)
        for batch in [*[size] * full, rest]:
            lanes.take(self.table.seconds(batch))
        return lanes.done_at

    def due_at(self, deadlines: Sequence[float], wait_until: float, now: float) -> float:
        """When the next batch should be formed, if another batch may be handed over.

        Args:
            deadlines: Deadlines in the queue; never decreasing, not empty.
            wait_until: Until then the batch may wait to grow, as long as no deadline is at stake.
            now: Current time.
        """
        cap = self.size_limit(now)
        start = self.timeline.free_at(now)
        if len(deadlines) >= min(
            cap, self._allowed_size(deadlines[0], start, now, ACCEPTED_MARGIN)
        ):
            return now  # waiting cannot make it larger
        lane_ends = self.timeline.lane_ends_at(now)
        if wait_until < lane_ends and len(deadlines) < self._min_size_for_free_lane(now):
            wait_until = lane_ends
        one_more = self.table.seconds(len(deadlines) + 1) * (1 + self.timeline.margin.share)
        return max(self.timeline.runs_dry_at(now), min(wait_until, deadlines[0] - one_more))

    def form_batch(self, deadlines: Sequence[float], now: float) -> tuple[int, int]:
        """How many of the first items to give up, and how many to take after them.

        Items that can no longer be in time are given up. If batches took longer than predicted,
        items that could be in time may be given up too, if fewer items are late in total: a full
        batch now instead of a small one that is in time for the first item.

        Args:
            deadlines: Deadlines in the queue; never decreasing, not empty.
            now: Current time.
        """
        cap = self.size_limit(now)
        lanes = self.timeline.lanes(now)
        start = lanes.free_at
        first = bisect_left(deadlines, start + self.table.seconds(1))
        if first == len(deadlines):
            tried = deadlines[-1] > now and self.timeline.is_stale(now)
            return (first - 1, 1) if tried else (first, 0)
        allowed = self._allowed_size(deadlines[first], start, now, ACCEPTED_MARGIN)
        if allowed < min(cap, len(deadlines) - first):
            first = self._fewest_late(deadlines, first, lanes, cap, now)
            allowed = self._allowed_size(deadlines[first], start, now, ACCEPTED_MARGIN)
        return first, self.table.best(min(max(allowed, 1), cap, len(deadlines) - first))

    def _fewest_late(
        self, deadlines: Sequence[float], first: int, lanes: Lanes, cap: int, now: float
    ) -> int:
        """How many of the first items to give up, at least `first`, so that the fewest are late."""
        choice, fewest = first, math.inf
        for given_up in range(
            first, len(deadlines), 1 + (len(deadlines) - first - 1) // MAX_CHOICES
        ):
            if given_up >= fewest:
                break
            limit = fewest - given_up
            late = given_up + self._count_late(deadlines, given_up, lanes.copy(), cap, now, limit)
            if late < fewest:
                choice, fewest = given_up, late
        return choice

    def _count_late(
        self,
        deadlines: Sequence[float],
        first: int,
        lanes: Lanes,
        cap: int,
        now: float,
        limit: float,
    ) -> int:
        """How many items from `first` on will be late if a batch with `first` begins now.

        Stops counting at `limit`.
        """
        late = 0
        place = first
        while place < len(deadlines) and late < limit:
            allowed = self._allowed_size(deadlines[place], lanes.free_at, now, ACCEPTED_MARGIN)
            if not allowed and place > first:
                late += 1
                place += 1
                continue
            size = self.table.best(min(max(allowed, 1), cap, len(deadlines) - place))
            lanes.take(self.table.seconds(size))
            place += size
        return late

    def size_limit(self, now: float) -> int:
        """Current maximum batch size."""
        if self.memory.unlimited:
            return self._max_batch_size
        return min(self._max_batch_size, self.memory.limit(now))

    def _in_time(self, end: float, now: float) -> float:
        """The earliest deadline that a batch with the predicted `end` meets, margin included."""
        return now + (end - now) * (1 + self.timeline.margin.share)

    def _allowed_size(self, deadline: float, start: float, now: float, margin_share: float) -> int:
        """The largest batch that begins at `start` and meets `deadline`; 0 if none does.

        `margin_share` is the share of the margin that is kept in reserve.
        """
        trusted = now + (deadline - now) / (1 + margin_share * self.timeline.margin.share)
        return self.table.largest_within(trusted - start)

    def _min_size_for_free_lane(self, now: float) -> int:
        """The smallest batch that a free lane takes while others compute.

        It keeps up with a lane's share of the arrivals, or has the best rate of items per second.
        """
        rate = KEEPING_UP / (self.arrivals.gap(now) * self._lanes)
        return min(self.table.keeps_up_with(rate), self.table.most_efficient)

    def _min_worthwhile_size(self, timeout: float, cap: int, now: float) -> int:
        """The smallest batch worth computing at the current arrival rate.

        It keeps up with the arrivals, or is the best that arrives and is computed within `timeout`.
        """
        gap = self.arrivals.gap(now)

        def since_first_arrival(size: int) -> float:
            return size * gap + self.table.seconds(size) * (1 + self.timeline.margin.share)

        within = bisect_right(range(1, cap + 1), timeout, key=since_first_arrival)
        return min(self.table.best(within), self.table.keeps_up_with(KEEPING_UP / gap))


class Arrivals:
    """The average time between two items that arrive, accepted or not. Older arrivals count less:
    their weight decays exponentially."""

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
