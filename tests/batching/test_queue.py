"""The queue: order, removal and bound."""

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


def test_queue_orders_by_deadline_and_then_by_arrival() -> None:
    """With one timeout for all items it is first in, first out."""
    queue = filled(Item("a", 2), Item("b", 2), Item("c", 1), Item("d", 3), Item("e", 2))

    assert list(queue.deadlines) == [1, 2, 2, 2, 3]
    assert names(queue.take(3)) == "cab"
    assert list(queue.deadlines) == [2, 3]
    assert names(queue.take(9)) == "ed"
    assert len(queue) == 0


def test_discard_removes_only_that_item() -> None:
    """Even among items with the same deadline."""
    items = [Item("a"), Item("b"), Item("c"), Item("d", 2)]
    queue = filled(*items)
    queue.discard(items[1])

    assert list(queue.deadlines) == [1, 1, 2]
    assert names(queue.take(9)) == "acd"


def test_discard_ignores_items_that_are_not_queued() -> None:
    """Items that were taken or never added are ignored."""
    items = [Item("a"), Item("b"), Item("c", 2)]
    queue = filled(*items)
    queue.take(1)
    queue.discard(items[0])
    queue.discard(Item("x", 1.5))
    queue.discard(Item("y", 9))

    assert names(queue.take(9)) == "bc"


def test_queue_is_full_at_its_maximum_size() -> None:
    """Not with one item less."""
    queue = BatchQueue[Item](2)
    seen = []
    for name in "ab":
        queue.put(Item(name))
        seen.append(queue.full)
    assert seen == [False, True]
    with pytest.raises(AssertionError):
        queue.put(Item("c"))


def test_oldest_compares_arrivals() -> None:
    """Waiting is counted from arrival, though the order is by deadline."""
    assert filled(Item("a", 2, arrived=5), Item("b", 9, arrived=3)).oldest() == 3
