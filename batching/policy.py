"""When a batch leaves, how large it is, and who is told at once that it will not work out. Pure.

All rules work on one picture: the deadlines of those who wait, in order (`line`), laid out into
batches from the moment the engine is free. A predicted end counts as in time if it is with the
margin on top. In short:

- A batch leaves at once when the engine is idle. While it is busy, the batch is closed just
  before the engine is free, so that it grows with the load by itself.
- While one lane computes, another free one is for a batch that keeps up with its share of what is
  arriving; a smaller one waits for the first lane to end, unless a deadline is at stake. Lanes
  share the cores with each other and all else: under load what is less is wasted.
- It is as large as its most urgent member allows and memory holds, rounded to what computes the
  most items a second: one item left for the next batch can be cheaper than a padded bucket.
- A newcomer is refused when its own answer would be late, when it would make somebody late who
  was accepted before, or when it could only be had by a batch too small to keep up with what is
  arriving: such a batch costs more answers than it gives.
- An engine that has been idle for a while is tried whatever the prediction says: one that was slow
  would otherwise be refused for ever, since only a batch can teach that it no longer is.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from batching.latency import LatencyTable
from batching.memory import MemoryCap
from batching.timeline import Lanes, Timeline

KEEPING_UP = 0.6
"""Share of what arrives that a batch must keep up with to be worth opening, and to be given a lane
beside busy ones. Found by simulation: with less, batches get small under overload; with more, too
many are refused just below it."""

MEMORY = 16
"""For how long arrivals are remembered, in T(1). Found by simulation: with less, each burst looks
like a flood; with more, a flood is taken for a burst."""

LENIENCY = 0.5
"""Share of the margin that is asked of those who were accepted: it was there for the errors that
came since. Asked for all of it again, one late batch would make the next small, and so others late.
"""

CHOICES = 16
"""How many ways of giving some up are compared, when some must be."""


class Policy:
    def __init__(self, table: LatencyTable, max_batch_size: int, lanes: int = 1) -> None:
        self.table = table
        self.timeline = Timeline(table, lanes)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=MEMORY * table.seconds(1))
        self._max_batch_size = max_batch_size
        self._lanes = lanes

    def switch(self, table: LatencyTable) -> None:
        """Another engine computes what begins from now on: what was learned of the one before,
        its memory included, no longer holds. What is in flight is still waited for.

        Raises ValueError unless it pads to the same buckets.
        """
        if table.buckets != self.table.buckets:
            raise ValueError(f"the buckets are {self.table.buckets}, not {table.buckets}")
        self.table = table
        self.timeline.switch(table)
        self.memory = MemoryCap(table.buckets)
        self.arrivals = Arrivals(memory=MEMORY * table.seconds(1))

    def lateness(self, line: Sequence[float], deadline: float, now: float) -> float | None:
        """Seconds by which a newcomer comes too late to join `line`; None if it is welcome."""
        if not line and deadline > now and self.timeline.unheard(now):
            return None
        cap = self.size_limit(now)
        if self._is_easy(line, deadline, cap, now):
            return None
        place = bisect_right(line, deadline)
        lanes = self.timeline.lanes(now)
        if place == len(line):
            ahead, lanes = self._in_full_batches(line, lanes, cap, now)
            line, place = line[ahead:], place - ahead
        line = [*line[:place], deadline, *line[place:]]
        first = 0
        while first < len(line):
            start = lanes.free_at
            # Those ahead are laid out as they will be cut. With the whole margin a batch that has
            # lost some of it looked smaller, its rest lost, and the time of that rest free.
            of_margin = LENIENCY if first < place else 1.0
            allowed = self._allowed(line[first], start, now, of_margin)
            needed = 1
            if first == place and allowed < cap:
                needed = max(1, self._worthwhile(deadline - now, cap, now))
            if allowed >= needed:
                size = self.table.best(min(allowed, cap, len(line) - first))
                lanes.take(self.table.seconds(size))
                first += size
            elif first < place:  # lost already, whoever comes, and those who have no more time
                soonest = self._in_time(start + self.table.seconds(1), now)
                first = max(first + 1, bisect_left(line, soonest, first, place))
            else:
                return self._in_time(start + self.table.seconds(needed), now) - line[first]
        return None

    def _is_easy(self, line: Sequence[float], deadline: float, cap: int, now: float) -> bool:
        """Would all of `line` and a newcomer be in time with the longest batch still to come after
        all others? A short cut: with deadlines far off, or a short line, nothing need be laid out.

        Full batches and one for the rest bound how long the line takes: where the rest is computed
        in several, `LatencyTable.best` has found them to take less.
        """
        full = self.table.seconds(cap)
        batches = len(line) // self.table.best(cap) + 2
        end = self.timeline.drained_by(now) + batches * full
        return self._in_time(end, now) <= (min(line[0], deadline) if line else deadline)

    def _in_full_batches(
        self, line: Sequence[float], lanes: Lanes, cap: int, now: float
    ) -> tuple[int, Lanes]:
        """How many at the head of `line` leave in full batches, whatever comes after them, and the
        lanes with those; 0 where it is not plain. A short cut: a long line need not be laid out
        batch by batch for each newcomer at its end."""
        size = self.table.best(cap)
        batches = (len(line) - cap) // size + 1
        if batches < 2:
            return 0, lanes
        after = lanes.copy()
        for _ in range(batches - 1):
            after.take(self.table.seconds(size))
        if self._allowed(line[0], after.free_at, now, LENIENCY) < cap:
            return 0, lanes  # the most urgent would not allow it if it came last
        after.take(self.table.seconds(size))
        return batches * size, after

    def drained_at(self, waiting: int, now: float) -> float:
        """When what is in flight and `waiting` more items will have been computed."""
        full, rest = divmod(waiting, size := self.table.best(self.size_limit(now)))
        lanes = self.timeline.lanes(now)
        for batch in [*[size] * full, rest]:
            lanes.take(self.table.seconds(batch))
        return lanes.done_at

    def due_at(self, line: Sequence[float], patience: float, now: float) -> float:
        """When the next batch should be closed, given a free slot and somebody who waits.

        Until `patience` it may wait for company, as long as nobody's deadline is at stake.
        """
        cap = self.size_limit(now)
        if len(line) >= min(cap, self._allowed(line[0], self.timeline.free_at(now), now, LENIENCY)):
            return now  # waiting cannot make it larger
        ends = self.timeline.lane_ends_at(now)
        if patience < ends and len(line) < self._worth_a_lane(now):
            patience = ends
        company = self.table.seconds(len(line) + 1) * (1 + self.timeline.margin.share)
        return max(self.timeline.runs_dry_at(now), min(patience, line[0] - company))

    def cut(self, line: Sequence[float], now: float) -> tuple[int, int]:
        """How many at the head of `line` to give up, and how many to take after them.

        Given up are those who can no longer make it; and, when batches have taken longer than
        foreseen, some who could, if that leaves fewer promises broken in all: a full batch now
        instead of a small one in time for the first.
        """
        cap = self.size_limit(now)
        lanes = self.timeline.lanes(now)
        start = lanes.free_at
        first = bisect_left(line, start + self.table.seconds(1))
        if first == len(line):
            tried = line[-1] > now and self.timeline.unheard(now)
            return (first - 1, 1) if tried else (first, 0)
        if self._allowed(line[first], start, now, LENIENCY) < min(cap, len(line) - first):
            first = self._least_lost(line, first, lanes, cap, now)
        allowed = max(self._allowed(line[first], start, now, LENIENCY), 1)
        return first, self.table.best(min(allowed, cap, len(line) - first))

    def _least_lost(
        self, line: Sequence[float], first: int, lanes: Lanes, cap: int, now: float
    ) -> int:
        """How many at the head to give up, from `first` on, so that the fewest are late in all."""
        choice, fewest = first, math.inf
        for given_up in range(first, len(line), 1 + (len(line) - first - 1) // CHOICES):
            if given_up >= fewest:
                break
            lost = given_up + self._lost(line, given_up, lanes.copy(), cap, now, fewest - given_up)
            if lost < fewest:
                choice, fewest = given_up, lost
        return choice

    def _lost(
        self, line: Sequence[float], first: int, lanes: Lanes, cap: int, now: float, most: float
    ) -> int:
        """How many of `line` from `first` on will be late, if a batch with `first` begins now;
        counted up to `most`."""
        lost = 0
        place = first
        while place < len(line) and lost < most:
            allowed = self._allowed(line[place], lanes.free_at, now, LENIENCY)
            if not allowed and place > first:
                lost += 1
                place += 1
                continue
            size = self.table.best(min(max(allowed, 1), cap, len(line) - place))
            lanes.take(self.table.seconds(size))
            place += size
        return lost

    def size_limit(self, now: float) -> int:
        """The largest batch that is computed at the moment."""
        return min(self._max_batch_size, self.memory.limit(now))

    def _in_time(self, end: float, now: float) -> float:
        """The earliest deadline that a predicted `end` can be trusted to meet."""
        return now + (end - now) * (1 + self.timeline.margin.share)

    def _allowed(self, deadline: float, start: float, now: float, of_margin: float) -> int:
        """The largest batch from `start` that meets `deadline` with that share of the margin; 0 if
        none does."""
        trusted = now + (deadline - now) / (1 + of_margin * self.timeline.margin.share)
        return self.table.largest_within(trusted - start)

    def _worth_a_lane(self, now: float) -> int:
        """The smallest batch that a lane beside busy ones is for: one that about keeps up with a
        lane's share of what arrives, or computes the most items a second."""
        rate = KEEPING_UP / (self.arrivals.gap(now) * self._lanes)
        return min(self.table.keeps_up_with(rate), self.table.most_efficient)

    def _worthwhile(self, timeout: float, cap: int, now: float) -> int:
        """The smallest batch worth computing at the rate at which items arrive.

        One that about keeps up with the arrivals is; and so is the best one that can be gathered
        at that rate and computed, all within one timeout.
        """
        gap = self.arrivals.gap(now)

        def since_first_arrival(size: int) -> float:
            return size * gap + self.table.seconds(size) * (1 + self.timeline.margin.share)

        within = bisect_right(range(1, cap + 1), timeout, key=since_first_arrival)
        return min(self.table.best(within), self.table.keeps_up_with(KEEPING_UP / gap))


class Arrivals:
    """How often items arrive, accepted or not, over about the last `memory` seconds."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._count = 0.0
        self._last = -math.inf

    def note(self, now: float) -> None:
        self._count = self._decayed(now) + 1
        self._last = now

    def gap(self, now: float) -> float:
        """Seconds between two items, on average."""
        count = self._decayed(now)
        return self._memory / count if count else math.inf

    def _decayed(self, now: float) -> float:
        return self._count * math.exp((self._last - now) / self._memory)
