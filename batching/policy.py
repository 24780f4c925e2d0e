"""Policy: decides when a batch is formed, how large it is, and which requests are rejected.

This module does no I/O and reads no clock: callers pass the current time. A lane is a part of the
engine that runs one batch at a time. T(n) is the predicted number of seconds that a batch of n
items takes. The margin is the extra time that is added to a prediction, as a share of the predicted
time.

For each decision, the policy plans how all items in the queue will be processed. The policy divides
the items into batches in the order of their deadlines. Each batch starts when the next lane is
predicted to be free. An item is in time if its batch is predicted to end, with the margin added,
before the item's deadline. The rules:

- If the engine is idle, a batch is formed immediately. If all lanes are busy, the batch is formed
  just before a lane becomes free. Therefore, batches grow with the load.
- If some lanes are free and others are busy, a small batch waits until the first busy lane becomes
  free. The batch does not wait if one of its items would then be late. A batch is small if
  the engine, running only batches of this size, would process fewer items per second than
  `KEEPING_UP` times the arrival rate. Small batches wait because lanes compete for the CPU, and
  small batches use the CPU inefficiently.
- A batch is as large as the earliest deadline of its items and the device's memory allow. Some
  items are left for the next batch if two batches would take less time than one batch. Two batches
  can be faster because they need less padding.
- A new item is rejected if it would be late, or if it would make an accepted item late. A new item
  is also rejected if only a small batch, as defined above, would be in time.
- If the engine has been idle for `timeline.STALE_AFTER` seconds, one item is accepted even if it is
  predicted to be late. The batch of this item shows whether an engine that was slow has recovered.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from batching.latency import LatencyTable
from batching.memory import MemoryCap
from batching.timeline import Lanes, Timeline

KEEPING_UP = 0.6
"""Minimum rate at which batches must process items, as a share of the arrival rate. The value was
found by simulation. With a smaller value, batches are too small under overload. With a larger
value, too many items are rejected when the load is just below the engine's capacity."""

ARRIVAL_MEMORY = 16
"""Time over which the arrival rate is averaged, as a multiple of T(1), the time of a batch of one
item. The value was found by simulation. With a smaller value, every burst counts as overload. With
a larger value, overload is detected too late."""

ACCEPTED_MARGIN = 0.5
"""Share of the margin that is required for items that are already accepted. A new item needs the
whole margin. If an accepted item needed the whole margin again, one late batch would make the next
batch small and delay later items."""

MAX_CHOICES = 16
"""Maximum number of alternatives that `form_batch` compares to choose the items to fail."""


class Policy:
    """Applies the rules to one engine, and keeps the data that the rules need."""

    def __init__(self, table: LatencyTable, max_batch_size: int, lanes: int = 1) -> None:
        """
        Args:
            table: Predicts the seconds of a batch, and learns from each batch.
            max_batch_size: Maximum number of items in a batch, at most `table.largest`.
            lanes: Number of batches that the engine runs at the same time.
        """
        self.table = table
        self.timeline = Timeline(table, lanes)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=ARRIVAL_MEMORY * table.seconds(1))
        self._max_batch_size = max_batch_size
        self._lanes = lanes

    def switch(self, table: LatencyTable) -> None:
        """Use `table` from the next batch on, because another engine runs the batches.

        The memory limit and the arrival rate learned so far are dropped. Batches in flight are
        still considered in predictions.

        Args:
            table: Predicts the batches of the new engine.

        Raises:
            ValueError: `table` and the current table have different buckets.
        """
        if table.buckets != self.table.buckets:
            raise ValueError(f"the buckets must be {self.table.buckets}, not {table.buckets}")
        self.table = table
        self.timeline.switch(table)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=ARRIVAL_MEMORY * table.seconds(1))

    def seconds_late(self, deadlines: Sequence[float], deadline: float, now: float) -> float | None:
        """Return how many seconds late an item would be if a new item were accepted.

        The item is the new item, or an accepted item that would be served after it.

        Returns None if the new item should be accepted.

        Args:
            deadlines: Deadlines of the items in the queue, the earliest first.
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
            # Items before the new item are planned in the same batches that `form_batch` will form.
            # `form_batch` requires only a part of the margin.
            margin_share = ACCEPTED_MARGIN if first < place else 1.0
            allowed = self._allowed_size(deadlines[first], start, now, margin_share)
            needed = 1
            if first == place and allowed < cap:
                needed = max(1, self._min_worthwhile_size(deadline - now, cap, now))
            if allowed >= needed:
                size = self.table.best(min(allowed, cap, len(deadlines) - first))
                lanes.take(self.table.seconds(size))
                first += size
            elif first < place:  # this item is late with or without the new item
                soonest = self._in_time(start + self.table.seconds(1), now)
                first = max(first + 1, bisect_left(deadlines, soonest, first, place))
            else:
                return self._in_time(start + self.table.seconds(needed), now) - deadlines[first]
        return None

    def _surely_in_time(
        self, deadlines: Sequence[float], deadline: float, cap: int, now: float
    ) -> bool:
        """Whether all batches are predicted to end before the earliest deadline.

        This method is a shortcut: if deadlines are distant, or few items wait, batches need not be
        planned one by one. The total time is at most the time of all full batches, plus one full
        batch for the remaining items. If `LatencyTable.best` splits the remaining items into
        several batches, these batches together take less time than one full batch.
        """
        full = self.table.seconds(cap)
        batches = len(deadlines) // self.table.best(cap) + 2
        end = self.timeline.drained_by(now) + batches * full
        return self._in_time(end, now) <= (min(deadlines[0], deadline) if deadlines else deadline)

    def _skip_full_batches(
        self, deadlines: Sequence[float], lanes: Lanes, cap: int, now: float
    ) -> tuple[int, Lanes]:
        """Count the items at the front of the queue that are certain to run in full batches.

        This method is a shortcut for a new item at the end of a long queue: the full batches before
        the item need not be planned one by one.

        Returns:
            The number of these items, and the state of the lanes after the batches of these items.
            The number is 0 if no item is certain to run in a full batch.
        """
        size = self.table.best(cap)
        batches = (len(deadlines) - cap) // size + 1
        if batches < 2:
            return 0, lanes
        after = lanes.copy()
        for _ in range(batches - 1):
            after.take(self.table.seconds(size))
        if self._allowed_size(deadlines[0], after.free_at, now, ACCEPTED_MARGIN) < cap:
            return 0, lanes  # after the previous batches, a full batch may miss the first deadline
        after.take(self.table.seconds(size))
        return batches * size, after

    def drained_at(self, waiting: int, now: float) -> float:
        """Return the predicted time at which all batches in flight and `waiting` items are done.

        A batch is in flight from its submission to the engine until the engine returns its results.
        """
        full, rest = divmod(waiting, size := self.table.best(self.size_limit(now)))
        lanes = self.timeline.lanes(now)
        for batch in [*[size] * full, rest]:
            lanes.take(self.table.seconds(batch))
        return lanes.done_at

    def due_at(self, deadlines: Sequence[float], wait_until: float, now: float) -> float:
        """Return the time at which the next batch should be formed.

        This method may be called only if the engine can accept another batch.

        Args:
            deadlines: Deadlines of the items in the queue, the earliest first. Must not be empty.
            wait_until: Time until which the batch may wait for more items. The batch is formed
                earlier if the first deadline requires it.
            now: Current time.
        """
        cap = self.size_limit(now)
        start = self.timeline.free_at(now)
        if len(deadlines) >= min(
            cap, self._allowed_size(deadlines[0], start, now, ACCEPTED_MARGIN)
        ):
            return now  # the batch cannot become larger
        lane_ends = self.timeline.lane_ends_at(now)
        if wait_until < lane_ends and len(deadlines) < self._min_size_for_free_lane(now):
            wait_until = lane_ends
        one_more = self.table.seconds(len(deadlines) + 1) * (1 + self.timeline.margin.share)
        return max(self.timeline.runs_dry_at(now), min(wait_until, deadlines[0] - one_more))

    def form_batch(self, deadlines: Sequence[float], now: float) -> tuple[int, int]:
        """Decide which items to fail, and how many items the next batch has.

        Items that can no longer be in time are failed. If batches took longer than predicted, the
        first deadline may allow only a small batch. In this case, items with the earliest deadlines
        may also be failed: without these items, a larger batch can begin now, and fewer items are
        late in total.

        Args:
            deadlines: Deadlines of the items in the queue, the earliest first. Must not be empty.
            now: Current time.

        Returns:
            The number of items at the front of the queue to fail, and the number of items after
            them to take for the batch.
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
        """Return how many items at the front of the queue to fail, so that the fewest are late.

        The result is at least `first`.
        """
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
        """Return how many items will be late if the next batch starts at the index `first`.

        Items before `first` are not counted. Counting stops at `limit`.
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
        """Return the current maximum batch size, which the device's memory may limit."""
        if self.memory.unlimited:
            return self._max_batch_size
        return min(self._max_batch_size, self.memory.limit(now))

    def _in_time(self, end: float, now: float) -> float:
        """Return the earliest deadline that a batch with the predicted `end` meets.

        The margin is added to the predicted end.
        """
        return now + (end - now) * (1 + self.timeline.margin.share)

    def _allowed_size(self, deadline: float, start: float, now: float, margin_share: float) -> int:
        """Return the size of the largest batch that begins at `start` and meets `deadline`.

        Returns 0 if not even a batch of one item meets the deadline. `margin_share` is the share of
        the margin that is required.
        """
        trusted = now + (deadline - now) / (1 + margin_share * self.timeline.margin.share)
        return self.table.largest_within(trusted - start)

    def _min_size_for_free_lane(self, now: float) -> int:
        """Return the minimum size of a batch that starts on a free lane while others are busy.

        A smaller batch waits for the first busy lane, unless an item would then be late. If all
        lanes compute batches of the returned size, the engine computes at least `KEEPING_UP` times
        the arrival rate. The result is never larger than the most efficient batch size.
        """
        rate = KEEPING_UP / (self.arrivals.gap(now) * self._lanes)
        return min(self.table.keeps_up_with(rate), self.table.most_efficient)

    def _min_worthwhile_size(self, timeout: float, cap: int, now: float) -> int:
        """Return the smallest batch size that is efficient enough at the current arrival rate.

        With batches of that size, the engine computes at least `KEEPING_UP` times the arrival
        rate. The result is at most the number of items that can arrive and be computed
        within `timeout` seconds.
        """
        gap = self.arrivals.gap(now)

        def since_first_arrival(size: int) -> float:
            return size * gap + self.table.seconds(size) * (1 + self.timeline.margin.share)

        within = bisect_right(range(1, cap + 1), timeout, key=since_first_arrival)
        return min(self.table.best(within), self.table.keeps_up_with(KEEPING_UP / gap))


class Arrivals:
    """Averages the time between two arrivals of items. Rejected items count as well.

    The weight of an arrival decays exponentially with time.
    """

    def __init__(self, memory: float) -> None:
        """
        Args:
            memory: Seconds after which an arrival's weight has decayed to 1/e.
        """
        self._memory = memory
        self._count = 0.0
        self._last = -math.inf

    def record(self, now: float) -> None:
        """Record the arrival of one item at the time `now`."""
        self._count = self._decayed(now) + 1
        self._last = now

    def gap(self, now: float) -> float:
        """Return the average seconds between two arrivals; infinity if no item has arrived."""
        count = self._decayed(now)
        return self._memory / count if count else math.inf

    def _decayed(self, now: float) -> float:
        return self._count * math.exp((self._last - now) / self._memory)
