"""Many images under way together: order, failures, and other requests' turns."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import BadImage
from service.inference.pipeline import each, forgiving


async def slow(item: float) -> float:
    if item < 0:
        raise BadImage("negative")
    await asyncio.sleep(item)
    return item


async def test_in_the_order_of_the_items() -> None:
    assert await each(slow, [0.02, 0.0, 0.01]) == [0.02, 0.0, 0.01]
    assert await each(slow, []) == []


async def test_a_failure_ends_the_others() -> None:
    """Nothing goes on for an answer that nobody will get; the exception says which it was."""
    ended = []

    async def step(item: float) -> None:
        try:
            await slow(item)
        finally:
            ended.append(item)

    began = asyncio.get_running_loop().time()
    with pytest.raises(BadImage, match="negative") as caught:
        await each(step, [30.0, -1.0, 30.0])
    assert caught.value.__notes__ == ["This is image 1 of the request, counted from 0."]
    assert sorted(ended) == [-1.0, 30.0, 30.0]
    assert asyncio.get_running_loop().time() - began < 5


async def test_one_alone_needs_no_number() -> None:
    with pytest.raises(BadImage) as caught:
        await each(slow, [-1.0])
    assert not hasattr(caught.value, "__notes__")


async def test_cancelling_ends_all() -> None:
    """Whether it comes while they are started or later."""
    ended = []

    async def step(item: int) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(item)

    for pause, turns in (True, 2), (True, 50), (False, 2):
        task = asyncio.create_task(each(step, range(5), pause=pause))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended


async def test_others_have_a_turn() -> None:
    """Steps that work before they wait do not run back to back."""
    turns: list[str] = []

    async def work(item: str) -> None:
        turns.append(item)

    async def other() -> None:
        for _ in range(3):
            turns.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(other(), each(work, "abc", pause=True))
    assert "abc" not in "".join(turn[0] for turn in turns)


async def test_forgiving() -> None:
    """A problem that is foreseen is an outcome; a failure so far is passed on; a bug is a bug."""
    late = TimeoutError()
    lenient = forgiving(slow)
    items: list[float | Exception] = [0.0, late, -1.0]
    first, second, third = await each(lenient, items)
    assert (first, second) == (0.0, late) and isinstance(third, BadImage)
    with pytest.raises(TypeError):
        await lenient("x")  # type: ignore[arg-type]
