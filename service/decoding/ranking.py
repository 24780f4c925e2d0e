"""A ranking: members ordered by a number, with fast access to the lowest and highest member."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

M = TypeVar("M", bound=Hashable)


class Ranking(Generic[M]):
    """Members in ascending order of their values.

    Members with equal values are ordered by the time when their values were set. The lowest and the
    highest member are found in constant time. A change takes about 2 us with 4,096 members: it
    needs O(log n) comparisons, and moves up to n pointers in memory.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[float, int, M]] = []
        self._keys: dict[M, tuple[float, int]] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, member: M) -> bool:
        return member in self._keys

    def set(self, member: M, value: float) -> None:
        """Add `member`, or change its value. Other members with this value precede `member`.

        A member that already has this value keeps its place.
        """
        if member in self._keys and self._keys[member][0] == value:
            return
        self.discard(member)
        key = value, next(self._numbers)
        self._keys[member] = key
        insort(self._rows, (*key, member))

    def discard(self, member: M) -> float:
        """Remove `member`. Returns its value, or 0 if `member` is not in the ranking."""
        key = self._keys.pop(member, None)
        if key is None:
            return 0.0
        del self._rows[bisect_left(self._rows, key)]
        return key[0]

    def oldest(self) -> tuple[float, M]:
        """Return the value and member that were set first. Raises StopIteration if there are no
        members."""
        member = next(iter(self._keys))
        return self._keys[member][0], member

    def lowest(self) -> tuple[float, M]:
        """Return the lowest value and its member. Raises IndexError if there are no members."""
        value, _, member = self._rows[0]
        return value, member

    def highest(self) -> tuple[float, M]:
        """Return the highest value and its member. Raises IndexError if there are no members."""
        value, _, member = self._rows[-1]
        return value, member
