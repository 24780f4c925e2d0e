"""Whose time it is: the clock on the stages of a request."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.stage_clock import CLOCKED, StageClock, clocked
from tests.fakes import Clock


class Working(Clock):
    """A clock that work sets forward."""

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Working:
    return Working()


@pytest.fixture
def stages(time: Working) -> StageClock:
    return StageClock(time)


def told(clock: StageClock) -> dict[str, float]:
    clock.enter("read")  # settles what has not been charged yet
    clock.leave()
    return {stage: seconds for stage, seconds in clock.seconds.items() if seconds}


def test_a_moment_belongs_to_the_innermost_stage(time: Working, stages: StageClock) -> None:
    """And outside of all stages to the loop, which reads."""

    def decode() -> None:
        time.work(4)

    def route() -> None:
        time.work(2)
        clocked(decode, stages, "decode")()
        time.work(1)

    time.work(8)
    clocked(route, stages, "route")()
    assert told(stages) == {"read": 8, "route": 3, "decode": 4}


def test_looking_at_the_clock_is_nobodys_time(time: Working, stages: StageClock) -> None:
    """The watch itself takes from whoever is watched; that is taken off again."""
    stages.own = 0.5

    def decode() -> None:
        time.work(4)

    def route() -> None:
        time.work(2.5)
        clocked(decode, stages, "decode")()

    time.work(8.5)
    clocked(route, stages, "route")()
    stages.own = 0.0
    assert told(stages) == {"read": 8, "route": 2, "decode": 4}


async def test_who_waits_is_charged_nothing(time: Working, stages: StageClock) -> None:
    """What happens while a coroutine waits belongs to others."""
    waits_for: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def infer() -> int:
        time.work(1)
        found = await waits_for
        time.work(2)
        return found

    task = asyncio.create_task(clocked(infer, stages, "infer")())
    await asyncio.sleep(0)
    time.work(16)
    waits_for.set_result(7)
    assert await task == 7
    assert told(stages) == {"read": 16, "infer": 3}


async def test_a_stage_that_fails_or_is_cancelled_ends(time: Working, stages: StageClock) -> None:
    """Its exceptions pass through it, from within and from without."""

    async def waits() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            time.work(1)
            raise ValueError from None

    task = asyncio.create_task(clocked(waits, stages, "queue")())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ValueError):  # noqa: PT011  # it says nothing
        await task
    time.work(2)
    assert told(stages) == {"queue": 1, "read": 2}


def test_what_is_clocked_is_there() -> None:
    """The service may rename what it likes, and the clock is told."""
    assert [name for owner, name, _ in CLOCKED if not callable(getattr(owner, name, None))] == []
