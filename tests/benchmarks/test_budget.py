"""The clock on the stages of a request."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.stage_clock import CLOCKED, StageClock, clocked
from tests.fakes import Clock


class Working(Clock):
    """A clock that advances when work is done."""

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time() -> Working:
    return Working()


@pytest.fixture
def stages(time: Working) -> StageClock:
    return StageClock(time)


def charged(clock: StageClock) -> dict[str, float]:
    clock.enter("read")  # charges the time since the last change
    clock.leave()
    return {stage: seconds for stage, seconds in clock.seconds.items() if seconds}


def test_clock_charges_the_innermost_stage(time: Working, stages: StageClock) -> None:
    """Time counts for the innermost stage, and outside of all stages for `read`."""

    def decode() -> None:
        time.work(4)

    def route() -> None:
        time.work(2)
        clocked(decode, stages, "decode")()
        time.work(1)

    time.work(8)
    clocked(route, stages, "route")()
    assert charged(stages) == {"read": 8, "route": 3, "decode": 4}


def test_clock_subtracts_its_own_time(time: Working, stages: StageClock) -> None:
    """The time that the clock itself takes counts for no stage."""
    stages.own = 0.5

    def decode() -> None:
        time.work(4)

    def route() -> None:
        time.work(2.5)
        clocked(decode, stages, "decode")()

    time.work(8.5)
    clocked(route, stages, "route")()
    stages.own = 0.0
    assert charged(stages) == {"read": 8, "route": 2, "decode": 4}


async def test_clock_does_not_charge_waiting(time: Working, stages: StageClock) -> None:
    """The time in which a coroutine waits does not count for its stage."""
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
    assert charged(stages) == {"read": 16, "infer": 3}


async def test_clock_ends_a_stage_that_raises(time: Working, stages: StageClock) -> None:
    """A stage ends when it is canceled or raises, and the exception is passed on."""

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
    assert charged(stages) == {"queue": 1, "read": 2}


def test_clocked_functions_exist() -> None:
    """Every function on the list exists in the service."""
    assert [name for owner, name, _ in CLOCKED if not callable(getattr(owner, name, None))] == []
