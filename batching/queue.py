"""BatchQueue holds the items that wait for a batch; Alarm wakes the task that forms batches.

The queue is ordered by deadline, the earliest first. Items with equal deadlines stay in order of
arrival. If all requests have the same timeout, the queue is first in, first out. The queue
compares deadlines and reads no clock.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from batching.completion import raisable, reject


class Waiting(Protocol):
    """The attributes of an item that the queue reads. Both attributes are times in seconds."""

    @property
    def arrived(self) -> float:
        """Time of arrival."""

    @property
    def deadline(self) -> float:
        """Time by which the item must be answered."""


W = TypeVar("W", bound=Waiting)


class BatchQueue(Generic[W]):
    """A queue that is ordered by deadline and has a maximum size."""

    def __init__(self, max_size: int) -> None:
        """
        Args:
            max_size: Maximum number of items.
        """
        self.max_size = max_size
        self._items: list[W] = []
        self._deadlines: list[float] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether the queue holds its maximum number of items."""
        return len(self._items) >= self.max_size

    @property
    def deadlines(self) -> Sequence[float]:
        """Deadlines of all items, the earliest first."""
        return self._deadlines

    def put(self, item: W) -> None:
        """Add `item`. The queue must not be full."""
        assert not self.full
        index = bisect_right(self._deadlines, item.deadline)
        self._deadlines.insert(index, item.deadline)
        self._items.insert(index, item)

    def discard(self, item: W) -> None:
        """Remove `item`. Does nothing if `item` is not in the queue."""
        index = bisect_left(self._deadlines, item.deadline)
        while index < len(self._items) and self._deadlines[index] == item.deadline:
            if self._items[index] is item:
                del self._items[index], self._deadlines[index]
                return
            index += 1

    def take(self, count: int) -> list[W]:
        """Remove and return the first `count` items, or all items if the queue has fewer."""
        taken = self._items[:count]
        del self._items[:count], self._deadlines[:count]
        return taken

    def oldest(self) -> float:
        """Return the earliest arrival time of all items. The queue must not be empty."""
        return min(item.arrived for item in self._items)


class Alarm:
    """Lets one task sleep until a time, and lets other code wake that task earlier."""

    def __init__(self) -> None:
        self._rings: asyncio.Future[None] | None = None
        self._at = math.inf

    async def sleep(self, until: float, now: float) -> None:
        """Sleep until `until`, or until other code wakes the task. Only one task may sleep.

        Args:
            until: Time in seconds by the caller's clock. Infinity: sleep until woken.
            now: Current time by the same clock.
        """
        loop = asyncio.get_running_loop()
        self._rings, self._at = loop.create_future(), until
        timer = loop.call_later(until - now, self.wake) if until < math.inf else None
        try:
            await self._rings
        finally:
            self._rings = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Wake the task that sleeps, if there is one."""
        if self._rings is not None and not self._rings.done():
            self._rings.set_result(None)

    def wake_if_earlier(self, due_at: Callable[[], float]) -> None:
        """Wake the task that sleeps if `due_at()` is before the time at which the task would wake.

        If `due_at` raises an exception, `sleep` raises that exception in the sleeping task.
        """
        rings = self._rings
        if rings is not None and not rings.done():
            try:
                if due_at() < self._at:
                    rings.set_result(None)
            except BaseException as error:
                reject(rings, raisable(error))
                if not isinstance(error, Exception):
                    raise
