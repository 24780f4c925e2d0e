"""BatchQueue: who waits, earliest deadline first, never more than `max_size`.

Equal deadlines keep their order of arrival, so that with one timeout for all this is a plain
first-in-first-out queue. Pure: it knows deadlines, not the time, and its callers may leave at
any moment.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue knows of an item: when it came and by when it must be answered."""

    @property
    def arrived(self) -> float: ...
    @property
    def deadline(self) -> float: ...


W = TypeVar("W", bound=Waiting)


class BatchQueue(Generic[W]):
    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._items: list[W] = []
        self._deadlines: list[float] = []

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self.max_size

    @property
    def deadlines(self) -> Sequence[float]:
        """In the order in which items will leave; never decreasing."""
        return self._deadlines

    def put(self, item: W) -> None:
        """Let `item` wait. The caller has seen that the queue is not full."""
        assert not self.full
        place = bisect_right(self._deadlines, item.deadline)
        self._deadlines.insert(place, item.deadline)
        self._items.insert(place, item)

    def discard(self, item: W) -> None:
        """Forget `item`, whose caller has gone. A no-op for one that no longer waits."""
        place = bisect_left(self._deadlines, item.deadline)
        while place < len(self._items) and self._deadlines[place] == item.deadline:
            if self._items[place] is item:
                del self._items[place], self._deadlines[place]
                return
            place += 1

    def take(self, count: int) -> list[W]:
        """The first `count`, which from now on no longer wait."""
        taken = self._items[:count]
        del self._items[:count], self._deadlines[:count]
        return taken

    def oldest(self) -> float:
        """When the longest-waiting item arrived. Not for an empty queue."""
        return min(item.arrived for item in self._items)
