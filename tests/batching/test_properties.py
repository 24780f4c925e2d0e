"""Properties: the batcher keeps its guarantees in worlds that hypothesis generates."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching import DeadlineUnreachable, Draining, EngineFailed, QueueFull
from tests.batching.fakes import FakeEngine, batcher, table
from tests.batching.virtual_time import run

TICK = 1e-6


@dataclass
class Call:
    """One caller: when it submits, its timeout, and when it cancels. None: it does not."""

    at: float
    timeout: float
    leaves_after: float | None
    fault: str
    ended: list[object] = field(default_factory=list)
    ended_at: float = 0.0


@dataclass
class World:
    calls: list[Call]
    max_batch_size: int
    max_queue_size: int
    max_in_flight: int
    lanes: int
    max_queue_delay: float
    fixed: float
    per_item: float
    slowdown: float
    memory: int
    drain_at: float


moments = st.floats(0, 20, width=16)
calls = st.builds(
    Call,
    at=moments,
    timeout=st.floats(0.125, 12, width=16),
    leaves_after=st.none() | st.none() | moments,
    fault=st.sampled_from(["", "", "", "", "", "", "poison", "bad"]),
)
worlds = st.builds(
    World,
    calls=st.lists(calls, max_size=40),
    max_batch_size=st.integers(1, 8),
    max_queue_size=st.integers(1, 12),
    max_in_flight=st.integers(1, 3),
    lanes=st.integers(1, 3),
    max_queue_delay=st.sampled_from([0.0, 0.0, 1.5]),
    fixed=st.floats(0.125, 2, width=16),
    per_item=st.floats(0, 0.5, width=16),
    slowdown=st.sampled_from([0.5, 1.0, 1.0, 3.0]),
    memory=st.integers(1, 8),
    drain_at=st.floats(0, 30, width=16),
)


@dataclass
class History:
    world: World
    engine: FakeEngine
    queued: list[int]
    worst_batch: float
    drained: tuple[int, int] | None = None


async def live(world: World) -> History:
    """Run a world, and record the length of the queue whenever it may have changed."""
    loop = asyncio.get_running_loop()

    def promised(size: int) -> float:
        return world.fixed + world.per_item * size

    engine = FakeEngine(lambda size: world.slowdown * promised(size), world.lanes)
    engine.memory = world.memory
    engine.poison = {n for n, call in enumerate(world.calls) if call.fault == "poison"}
    engine.bad = {n for n, call in enumerate(world.calls) if call.fault == "bad"}
    history = History(world, engine, [], world.slowdown * promised(8))

    async def ask(number: int, call: Call) -> None:
        try:
            call.ended.append(await b.submit(number, call.timeout))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - judged below
            call.ended.append(error)
        finally:
            call.ended_at = loop.time()
            history.queued.append(b.queued)

    b = batcher(
        engine,
        latency=table(promised),
        max_batch_size=world.max_batch_size,
        max_queue_size=world.max_queue_size,
        max_in_flight=world.max_in_flight,
        lanes=world.lanes,
        max_queue_delay=world.max_queue_delay,
    )
    async with b:
        tasks: dict[int, asyncio.Task[None]] = {}

        def come(number: int) -> None:
            tasks[number] = loop.create_task(ask(number, world.calls[number]))

        def leave(number: int) -> None:
            tasks[number].cancel()

        for number, call in enumerate(world.calls):
            loop.call_at(call.at, come, number)
            loop.call_at(call.at + TICK / 2, lambda: history.queued.append(b.queued))
            if call.leaves_after is not None:
                loop.call_at(call.at + call.leaves_after + TICK, leave, number)
        await asyncio.sleep(world.drain_at)
        await b.drain()
        history.drained = (b.queued, b.in_flight)
        await asyncio.sleep(60)
        await asyncio.gather(*tasks.values())
    return history


@settings(deadline=None)
@given(worlds)
def test_batcher_keeps_its_guarantees(world: World) -> None:
    """In every generated world. Each assertion is one guarantee."""
    history = run(live(world))
    engine = history.engine

    for number, call in enumerate(world.calls):
        assert len(call.ended) == 1, "every submit ends exactly once"
        end = call.ended[0]
        assert call.ended_at <= call.at + call.timeout + TICK, "by its deadline"
        if not isinstance(end, BaseException):
            answer: Any = end
            assert answer.value == 2 * number, "every caller gets the answer for its item"
            assert call.fault == ""
            spent = answer.queue_seconds + answer.infer_seconds
            assert spent <= call.timeout + TICK
            assert answer.batch_size <= min(world.max_batch_size, world.memory)
        elif isinstance(end, EngineFailed):
            assert call.fault, "only culprits fail"
        elif isinstance(end, asyncio.CancelledError):
            assert call.leaves_after is not None
        elif isinstance(end, QueueFull | DeadlineUnreachable | Draining):
            assert end.retry_after >= 0
        else:
            assert isinstance(end, TimeoutError)
            assert call.ended_at >= call.at + call.timeout - TICK
        if isinstance(end, Draining):
            assert call.at >= world.drain_at

    assert max(history.queued, default=0) <= world.max_queue_size, "the queue has its bound"
    assert history.drained == (0, 0), "after drain nothing is left"

    sizes = [len(batch) for batch in engine.batches]
    assert max(sizes, default=1) <= world.max_batch_size, "no batch exceeds its size"
    assert all(sizes), "and none is empty"

    times_computed = Counter(item for batch in engine.batches for item in batch)
    failed_with = {
        item
        for batch in engine.batches
        if len(batch) > world.memory or engine.poison.intersection(batch)
        for item in batch
    }
    for item, times in times_computed.items():
        assert times == 1 or item in failed_with, "twice only after a fault"
        last = max(n for n, batch in enumerate(engine.batches) if item in batch)
        for batch in engine.batches[:last]:
            assert (
                item not in batch or len(batch) > world.memory or engine.poison.intersection(batch)
            )


@settings(deadline=None)
@given(worlds)
def test_batches_hold_the_earliest_deadlines(world: World) -> None:
    """Without faults, a batch holds the items with the earliest deadlines when it is formed."""
    for call in world.calls:
        call.fault = ""
    world.memory = 8
    history = run(live(world))
    handed: dict[int, float] = {}
    for number, call in enumerate(world.calls):
        answer: Any = call.ended[0]
        if not isinstance(answer, BaseException):
            handed[number] = call.at + answer.queue_seconds
    for one, start in handed.items():
        for other, later in handed.items():
            if later > start + TICK and world.calls[other].at < start - TICK:
                deadlines = [world.calls[n].at + world.calls[n].timeout for n in (one, other)]
                assert deadlines[0] <= deadlines[1] + TICK
    assert history.drained == (0, 0)


@settings(deadline=None)
@given(worlds)
def test_accepted_items_are_in_time(world: World) -> None:
    """If the engine takes as long as predicted, no accepted item is late, except items with less
    time than the engine takes, which are tried once."""
    world.slowdown, world.memory = 1.0, 8
    alone = 1.1 * (world.fixed + world.per_item)
    for call in world.calls:
        call.fault, call.leaves_after = "", None
    run(live(world))
    for call in world.calls:
        late = isinstance(call.ended[0], DeadlineUnreachable) and call.ended_at > call.at + TICK
        assert call.timeout < alone or not (late or isinstance(call.ended[0], TimeoutError))


@functools.cache
def answered_after(slow: float, until: float, slots: int, gap: float, timeout: float) -> float:
    """The share of requests that are answered by an engine that was `slow` times slower until
    then, from two minutes after its last slow batch has ended."""
    calm = until + 1.8 * slots * slow + 120

    async def scenario() -> list[bool]:
        loop = asyncio.get_running_loop()
        engine = FakeEngine(lambda size: 1.0 + 0.1 * size)
        promised = table(engine.seconds)
        engine.seconds = lambda size: (1.0 + 0.1 * size) * (slow if loop.time() < until else 1.0)
        ends: list[bool] = []

        async def ask() -> None:
            counts = loop.time() > calm
            try:
                await b.submit(1, timeout)
                ends.extend([True] * counts)
            except (DeadlineUnreachable, TimeoutError, QueueFull):
                ends.extend([False] * counts)

        async with batcher(engine, latency=promised, max_in_flight=slots) as b:
            tasks = []
            while loop.time() < calm + 60:
                tasks.append(loop.create_task(ask()))
                await asyncio.sleep(gap)
            await asyncio.gather(*tasks)
        return ends

    ends = run(scenario())
    return sum(ends) / len(ends)


@settings(deadline=None, max_examples=20)
@given(
    slow=st.floats(1, 60, width=16),
    until=st.floats(0, 60, width=16),
    slots=st.integers(1, 2),
    gap=st.sampled_from([0.3, 2.0, 7.0]),
    timeout=st.sampled_from([2.0, 5.0, 20.0]),
)
def test_batcher_recovers_from_any_slow_time(
    slow: float, until: float, slots: int, gap: float, timeout: float
) -> None:
    """However slow the engine was and for how long: soon after it has recovered, as many items are
    answered as usual."""
    usual = answered_after(1.0, 0.0, slots, gap, timeout)
    assert answered_after(slow, until, slots, gap, timeout) >= 0.85 * usual


@pytest.mark.parametrize("slots", [1, 2])
def test_goodput_is_stable_under_overload(slots: int) -> None:
    """At ten times the capacity the engine computes full batches, and all answers are in time."""

    async def scenario() -> tuple[FakeEngine, Counter[str]]:
        engine = FakeEngine(lambda size: 0.1 + 0.01 * size)
        ends: Counter[str] = Counter()

        async def ask() -> None:
            try:
                await b.submit(1, 1.0)
                ends["answered"] += 1
            except (QueueFull, DeadlineUnreachable) as error:
                ends[type(error).__name__] += 1

        async with batcher(engine, max_in_flight=slots) as b:
            tasks = []
            for _ in range(10_000):
                await asyncio.sleep(0.18 / 80)
                tasks.append(asyncio.create_task(ask()))
            await asyncio.gather(*tasks)
        return engine, ends

    engine, ends = run(scenario())
    assert ends["answered"] >= 0.97 * 1000
    assert sum(ends.values()) == 10_000
    assert sum(len(batch) for batch in engine.batches) == ends["answered"], "nothing in vain"
