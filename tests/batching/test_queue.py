"""Who waits, and in what order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from batching.queue import BatchQueue


@dataclass(eq=False)
class Item:
    name: str
    deadline: float = 1.0
    arrived: float = 0.0


def filled(*items: Item) -> BatchQueue[Item]:
    queue = BatchQueue[Item](10)
    for item in items:
        queue.put(item)
    return queue


def names(items: list[Item]) -> str:
    return "".join(item.name for item in items)


def test_earliest_deadline_first_and_equal_ones_in_order_of_arrival() -> None:
    """One timeout for all makes it first in, first out."""
    queue = filled(Item("a", 2), Item("b", 2), Item("c", 1), Item("d", 3), Item("e", 2))

    assert list(queue.deadlines) == [1, 2, 2, 2, 3]
    assert names(queue.take(3)) == "cab"
    assert list(queue.deadlines) == [2, 3]
    assert names(queue.take(9)) == "ed"
    assert len(queue) == 0


def test_a_discarded_item_is_gone_and_only_that_one() -> None:
    """Even among items of the same deadline."""
    items = [Item("a"), Item("b"), Item("c"), Item("d", 2)]
    queue = filled(*items)
    queue.discard(items[1])

    assert list(queue.deadlines) == [1, 1, 2]
    assert names(queue.take(9)) == "acd"


def test_discarding_what_does_not_wait_changes_nothing() -> None:
    """It has been taken, or never came."""
    items = [Item("a"), Item("b"), Item("c", 2)]
    queue = filled(*items)
    queue.take(1)
    queue.discard(items[0])
    queue.discard(Item("x", 1.5))
    queue.discard(Item("y", 9))

    assert names(queue.take(9)) == "bc"


def test_the_bound() -> None:
    """Full at max_size, and not before."""
    queue = BatchQueue[Item](2)
    seen = []
    for name in "ab":
        queue.put(Item(name))
        seen.append(queue.full)
    assert seen == [False, True]
    with pytest.raises(AssertionError):
        queue.put(Item("c"))


def test_the_oldest_need_not_be_the_first() -> None:
    """Waiting is counted from arrival, order from deadlines."""
    assert filled(Item("a", 2, arrived=5), Item("b", 9, arrived=3)).oldest() == 3
