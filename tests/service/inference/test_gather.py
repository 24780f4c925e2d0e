"""Running a stage for all images of a request: order, failures, and turns of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import BadImage
from service.inference.gather import gather, returning_errors


async def slow(item: float) -> float:
    if item < 0:
        raise BadImage("negative")
    await asyncio.sleep(item)
    return item


async def test_gather_keeps_the_order() -> None:
    """Results have the order of the items, whichever ends first."""
    assert await gather(slow, [0.02, 0.0, 0.01]) == [0.02, 0.0, 0.01]
    assert await gather(slow, []) == []


async def test_gather_cancels_the_others_after_a_failure() -> None:
    """The first exception cancels the other items, and says which item failed."""
    ended = []

    async def step(item: float) -> None:
        try:
            if item < 0:
                raise BadImage("negative")
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(BadImage, match="negative") as caught:
        await gather(step, [30.0, -1.0, 30.0])
    assert caught.value.__notes__ == ["This is image 1 of the request, counted from 0."]
    assert sorted(ended) == [-1.0, 30.0, 30.0]


async def test_gather_does_not_number_a_single_item() -> None:
    """The exception of a single item does not say which item failed."""
    with pytest.raises(BadImage) as caught:
        await gather(slow, [-1.0])
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(("pause", "turns"), [(True, 2), (True, 50), (False, 2)])
async def test_gather_cancels_all_items(pause: bool, turns: int) -> None:
    """Cancelling the call cancels every item that has started, while others still have to start or
    later."""
    started, ended = [], []

    async def step(item: int) -> None:
        started.append(item)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    task = asyncio.create_task(gather(step, range(5), pause=pause))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started and sorted(ended) == sorted(started)
    assert (len(started) == 5) == (turns == 50 or not pause)


async def test_gather_lets_other_tasks_run() -> None:
    """With `pause`, stages that start with synchronous work do not run back to back."""
    turns: list[str] = []

    async def work(item: str) -> None:
        turns.append(item)

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(other(), gather(work, "abc", pause=True))
    assert "abc" not in "".join(turn[0] for turn in turns)


async def test_returning_errors_returns_problems_only() -> None:
    """Exceptions that have a problem are returned, also those of an earlier stage. All others are
    raised."""
    late = TimeoutError()
    stage = returning_errors(slow)
    items: list[float | Exception] = [0.0, late, -1.0]
    first, second, third = await gather(stage, items)
    assert (first, second) == (0.0, late) and isinstance(third, BadImage)
    with pytest.raises(TypeError):
        await stage("x")  # type: ignore[arg-type]
