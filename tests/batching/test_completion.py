"""Callbacks that raise: their requests end with an error, and the service continues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from batching import Answer, LatencyTable, on_error, reject
from tests.batching.fakes import FakeEngine, batcher, task
from tests.batching.virtual_time import virtual_time


class Fault(Exception):
    pass


class Faulty:
    """Raises at its `at`-th use, once."""

    def __init__(self, at: int) -> None:
        self.uses_left = at

    def use(self) -> None:
        self.uses_left -= 1
        if self.uses_left == 0:
            raise Fault


class FaultyClock(Faulty):
    def __call__(self) -> float:
        self.use()
        return asyncio.get_running_loop().time()


class FaultyTable(Faulty, LatencyTable):
    """Every lookup and every observation is a use."""

    def __init__(self, at: int) -> None:
        LatencyTable.__init__(self, {bucket: [1.0] * 3 for bucket in (1, 2, 4, 8)})
        Faulty.__init__(self, at + 1)  # one use belongs to the batcher's constructor

    def bucket(self, size: int) -> int:
        self.use()
        return super().bucket(size)

    def seconds(self, size: int) -> float:
        self.use()
        return super().seconds(size)

    def best(self, size: int) -> int:
        self.use()
        return super().best(size)

    def observe(self, size: int, seconds: float) -> None:
        self.use()
        super().observe(size, seconds)


async def fails_on_each(settings: dict[str, Any], faulty: Faulty) -> None:
    engine = FakeEngine()
    async with batcher(engine, max_in_flight=2, **settings) as b:
        rounds = 0
        while faulty.uses_left > 0:
            began, rounds = asyncio.get_running_loop().time(), rounds + 1
            callers = [task(b, item, timeout=1000.0) for item in range(3)]
            await asyncio.sleep(0.5)
            callers += [task(b, item, timeout=1000.0) for item in range(3, 12)]
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
            computed = {item for batch in engine.batches for item in batch}
            for item, outcome in enumerate(outcomes):
                assert isinstance(outcome, Answer | Exception)
                assert not isinstance(outcome, TimeoutError)
                assert not (isinstance(outcome, Fault) and item in computed), "rejected by submit"
            engine.batches.clear()
            assert asyncio.get_running_loop().time() - began < 10, "none waited for its deadline"
            assert rounds < 100
        assert (await b.submit(21, 1000.0)).value == 42
        assert b.healthy
        await asyncio.sleep(0)  # the runner has taken the last batch off its list
        assert (b.queued, b.in_flight) == (0, 0)


@pytest.mark.parametrize("at", range(1, 50))
@virtual_time
async def test_batcher_ends_requests_when_its_clock_raises(at: int) -> None:
    """Wherever in the batcher it happens, requests end at once and the next request is answered."""
    clock = FaultyClock(at)
    await fails_on_each({"clock": clock}, clock)


@pytest.mark.parametrize("at", range(1, 50))
@virtual_time
async def test_batcher_ends_requests_when_its_latency_table_raises(at: int) -> None:
    """Wherever in the batcher it happens, requests end at once and the next request is answered."""
    table = FaultyTable(at)
    await fails_on_each({"latency": table}, table)


def cancels() -> None:
    raise asyncio.CancelledError


def stops() -> None:
    raise StopIteration


def fails() -> None:
    raise Fault


@pytest.mark.parametrize("step", [fails, stops, cancels])
async def test_on_error_completes_the_answer_of_a_callback_that_raises(
    step: Callable[[], None],
) -> None:
    """Whatever the callback raises, including exceptions that a future does not accept."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)
    answer: asyncio.Future[None] = loop.create_future()

    def callback() -> None:
        with on_error(reject, answer):
            step()

    loop.call_soon(callback)
    with pytest.raises((Fault, RuntimeError)):
        await asyncio.wait_for(answer, 10)


async def test_reject_logs_an_error_after_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The request keeps its answer, and the error is logged."""
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with caplog.at_level(logging.ERROR), on_error(reject, answer):
        answer.set_result(1)
        raise Fault
    assert await answer == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [Fault]


def test_a_block_that_succeeds_completes_nothing() -> None:
    """`fail` is for errors only."""
    failures: list[Exception] = []
    with on_error(failures.append):
        pass
    assert failures == []
