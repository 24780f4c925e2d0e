"""The batcher as its callers and the engine use it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from batching import (
    Batcher,
    BatchReport,
    DeadlineUnreachable,
    Draining,
    EngineDead,
    EngineFailed,
    LatencyTable,
    QueueFull,
)
from tests.batching.fakes import FakeEngine, Reports, batcher, now, outcomes, table, task
from tests.batching.virtual_time import virtual_time


@virtual_time
async def test_batcher_computes_a_single_item_at_once() -> None:
    """If the engine is idle, an item does not wait for others."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        await asyncio.sleep(5)
        answer = await b.submit(21, 10)

    assert answer.value == 42
    assert answer.queue_seconds == 0
    assert answer.infer_seconds == 1
    assert (answer.batch_size, answer.bucket) == (1, 1)
    assert now() == 6


@virtual_time
async def test_batches_grow_while_the_engine_is_busy() -> None:
    """Items that arrive during a batch are in the next one, in order, padded to a bucket."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        first = task(b, 0)
        await asyncio.sleep(0.5)
        others = [task(b, item) for item in (1, 2, 3)]
        answers = await asyncio.gather(first, *others)

    assert engine.batches == [[0], [1, 2, 3]]
    assert [answer.value for answer in answers] == [0, 2, 4, 6]
    assert [answer.bucket for answer in answers] == [1, 4, 4, 4]
    assert answers[1].queue_seconds == 0.5


@virtual_time
async def test_batches_are_at_most_max_batch_size() -> None:
    """Even if the table has larger buckets."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=3) as b:
        await asyncio.gather(*(task(b, item) for item in range(8)))

    assert [len(batch) for batch in engine.batches] == [3, 3, 2]


@virtual_time
async def test_batches_hold_the_earliest_deadlines() -> None:
    """Earliest deadline first; equal deadlines in order of arrival."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=2) as b:
        first = task(b, 0)
        await asyncio.sleep(0.1)
        rest = [task(b, item, timeout) for item, timeout in [(1, 50), (2, 50), (3, 9), (4, 50)]]
        await asyncio.gather(first, *rest)

    assert engine.batches == [[0], [3, 1], [2, 4]]


@virtual_time
async def test_submit_rejects_at_once_if_the_queue_is_full() -> None:
    """The rejection says when the items in the queue will be processed."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=1, max_queue_size=2) as b:
        first = task(b, 0)
        await asyncio.sleep(0.25)
        waiting = [task(b, 1), task(b, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refusal:
            await b.submit(3, 100)

        assert now() == 0.25
        assert b.queued == 2
        assert refusal.value.retry_after == pytest.approx(0.75 + 2)
        await asyncio.gather(first, *waiting)
    assert engine.batches == [[0], [1], [2]]


@virtual_time
async def test_submit_rejects_an_unreachable_deadline_at_once() -> None:
    """The running batch takes 0.5 s more and the item 1 s: 1.2 s are too few, and 2 s are
    enough."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        first = task(b, 0)
        await asyncio.sleep(0.5)
        with pytest.raises(DeadlineUnreachable) as refusal:
            await b.submit(1, 1.2)
        assert now() == 0.5
        assert 0.3 <= refusal.value.retry_after <= 0.4

        assert (await b.submit(2, 2)).value == 4
        assert (await first).value == 0
    assert engine.batches == [[0], [2]]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_submit_rejects_a_timeout_of_zero_or_less(timeout: float) -> None:
    """Even if the engine is idle."""

    @virtual_time
    async def scenario() -> None:
        async with batcher(FakeEngine()) as b:
            with pytest.raises(DeadlineUnreachable):
                await b.submit(1, timeout)

    scenario()


@virtual_time
async def test_submit_protects_accepted_items() -> None:
    """An early deadline could be met, but only by making an accepted item late."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=1) as b:
        first = task(b, 0)
        await asyncio.sleep(0)
        second = task(b, 1, 2.5)
        await asyncio.sleep(0)
        with pytest.raises(DeadlineUnreachable):
            await b.submit(2, 2.3)

        assert (await second).value == 2
        await first


@virtual_time
async def test_cancel_removes_an_item_from_the_queue() -> None:
    """An item of a canceled caller is not processed; the other items are."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        first = task(b, 0)
        await asyncio.sleep(0)
        gone, kept = task(b, 1), task(b, 2)
        await asyncio.sleep(0.5)
        gone.cancel()
        await asyncio.sleep(0)
        assert b.queued == 1
        assert (await kept).value == 4
        await first

    assert gone.cancelled()
    assert engine.batches == [[0], [2]]


@virtual_time
async def test_submit_times_out_at_the_deadline() -> None:
    """The caller gets TimeoutError at the deadline, not when the engine returns."""
    engine = FakeEngine(lambda size: 10.0)
    async with batcher(engine, latency=table()) as b:
        with pytest.raises(TimeoutError):
            await b.submit(1, 4)
        assert now() == 4


@virtual_time
async def test_late_items_are_rejected_and_not_computed() -> None:
    """The first batch takes five times as long as predicted. An item without time afterwards is
    rejected."""
    engine = FakeEngine(lambda size: 5.0)
    async with batcher(engine, latency=table(), max_batch_size=1) as b:
        first = task(b, 0)
        await asyncio.sleep(0)
        tight, patient = task(b, 1, 5.5), task(b, 2, 20)
        results = await outcomes(first, tight, patient)

    assert isinstance(results[1], DeadlineUnreachable)
    assert results[1].retry_after > 0
    assert engine.batches == [[0], [2]]


@virtual_time
async def test_submit_counts_the_halves_still_to_be_computed() -> None:
    """An item is rejected if it could have been in time only without the failure."""
    engine = FakeEngine()
    engine.poison = set(range(8))
    async with batcher(engine) as b:
        tasks = [task(b, item) for item in range(8)]
        await asyncio.sleep(1.5)  # the first half is being computed
        with pytest.raises(DeadlineUnreachable):
            await b.submit(9, 2.4)
        await outcomes(*tasks)


@virtual_time
async def test_batcher_is_unhealthy_while_all_batches_fail() -> None:
    """After max_failures failed batches in a row; one success makes it healthy."""
    engine = FakeEngine()
    engine.broken = True
    async with batcher(engine, max_failures=3) as b:
        seen = []
        for _ in range(3):
            with pytest.raises(EngineFailed):
                await b.submit(1, 100)
            await asyncio.sleep(0)
            seen.append(b.healthy)
        assert seen == [True, True, False]

        engine.broken = False
        await b.submit(1, 100)
        await asyncio.sleep(0)
        assert b.healthy


@virtual_time
async def test_batcher_is_unhealthy_if_batches_fail_after_their_deadlines() -> None:
    """A batch that fails counts even if no caller waits for it."""
    engine = FakeEngine(lambda size: 6.0)
    engine.broken = True
    async with batcher(engine, latency=table(), max_failures=3) as b:
        for _ in range(3):
            await asyncio.sleep(10)
            assert b.healthy
            with pytest.raises(TimeoutError):
                await b.submit(1, 5)
            await asyncio.sleep(2)
        assert not b.healthy


@virtual_time
async def test_batcher_is_healthy_if_only_callers_cancel() -> None:
    """A batch that is finished counts as a success even if its callers have canceled."""
    engine = FakeEngine()
    engine.broken = True
    async with batcher(engine, max_failures=2) as b:
        await outcomes(task(b, 1))
        engine.broken = False
        gone = task(b, 2)
        await asyncio.sleep(0.5)
        gone.cancel()
        await asyncio.sleep(1)
        engine.broken = True
        await outcomes(task(b, 3))
        assert b.healthy


@virtual_time
async def test_batcher_recovers_after_the_engine_was_slow() -> None:
    """An engine that was so slow that all items were rejected is used again when it has
    recovered."""
    engine = FakeEngine(lambda size: 22.0)
    async with batcher(engine, latency=table()) as b:
        for _ in range(3):
            await outcomes(task(b, 0, 30))
        engine.seconds = lambda size: 1.0
        answered = 0
        for _ in range(60):
            results = await outcomes(task(b, 1, 10))
            answered += not isinstance(results[0], Exception)
            await asyncio.sleep(2)
        assert answered > 50


@virtual_time
async def test_batcher_rejects_items_while_the_engine_hangs() -> None:
    """Callers get TimeoutError at their deadlines. Soon all new items are rejected."""
    engine = FakeEngine(lambda size: 3600.0)
    async with batcher(engine, latency=table()) as b:
        first = task(b, 0, 5)
        await asyncio.sleep(20)
        with pytest.raises(DeadlineUnreachable):
            await b.submit(1, 10)
        with pytest.raises(TimeoutError):
            await first


@virtual_time
async def test_engine_is_dead_after_a_hundred_times_the_predicted_time() -> None:
    """`engine_is_dead` returns True, and the batcher is unhealthy."""
    engine = FakeEngine(lambda size: 3600.0)
    async with batcher(engine, latency=table()) as b:
        first = task(b, 0, 5)
        await asyncio.sleep(0)
        looks = 0
        while not b.engine_is_dead():
            assert b.healthy
            await asyncio.sleep(1)
            looks += 1
        assert 100 < looks < 103 and not b.healthy
        with pytest.raises(TimeoutError):
            await first


@virtual_time
async def test_a_stalled_engine_recovers_when_its_batch_ends() -> None:
    """It recovers at once. Batches that take as long as predicted never stall it, however many
    items wait."""
    engine = FakeEngine(lambda size: 30.0)
    async with batcher(engine, latency=table()) as b:
        first = task(b, 0)
        found = []
        for _ in range(29):
            await asyncio.sleep(1)
            assert not b.engine_is_dead()
            found.append(b.engine_is_stalled)
        assert found == [second > 11 for second in range(1, 30)]
        assert (await first).value == 0
        assert not b.engine_is_stalled

    async with batcher(FakeEngine(), max_batch_size=1) as b:
        waiting = [task(b, item) for item in range(60)]
        while b.queued:
            await asyncio.sleep(1)
            assert not b.engine_is_dead() and not b.engine_is_stalled
        await asyncio.gather(*waiting)


@virtual_time
async def test_abandon_fails_all_items_at_once() -> None:
    """Items in the batch, in the queue and new ones fail with EngineDead. Draining ends when the
    engine returns, and nothing more is computed."""
    engine, reports = FakeEngine(lambda size: 3600.0), Reports()
    async with batcher(engine, latency=table(), max_batch_size=2, on_batch=reports) as b:
        waiting = [task(b, item, 5000) for item in range(5)]
        await asyncio.sleep(7)
        b.abandon()
        results = await outcomes(*waiting)
        assert now() == 7
        assert [type(result) for result in results] == [EngineDead] * 5
        with pytest.raises(EngineDead):
            await b.submit(9, 5000)
        assert not b.healthy and b.queued == 0
    assert now() == 3600
    assert [len(batch) for batch in engine.batches] == [2]
    assert [(report.answered, report.failed, report.gone) for report in reports] == [(0, 2, 0)]


@virtual_time
async def test_drain_answers_queued_items_and_rejects_new_ones() -> None:
    """It returns after the last answer."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=1) as b:
        accepted = [task(b, item) for item in range(3)]
        await asyncio.sleep(0)
        draining = asyncio.create_task(b.drain())
        await asyncio.sleep(0.5)
        assert b.healthy
        with pytest.raises(Draining) as refusal:
            await b.submit(9, 100)
        assert refusal.value.retry_after == pytest.approx(2.5)
        await draining
        assert now() == 3
        assert all(one.done() for one in accepted)
        assert (b.queued, b.in_flight) == (0, 0)


@virtual_time
async def test_leaving_the_context_drains() -> None:
    """Items that were accepted are answered before the context ends."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        accepted = task(b, 1)
        await asyncio.sleep(0)
    assert accepted.done()
    with pytest.raises(Draining):
        await b.submit(2, 100)


@virtual_time
async def test_canceling_the_exit_fails_the_batch() -> None:
    """If leaving the context is canceled because the engine hangs, its items fail and no task
    remains."""
    waiting: list[asyncio.Task[object]] = []

    async def visit() -> None:
        async with batcher(FakeEngine(lambda size: 3600.0)) as b:
            waiting.append(task(b, 1, 9999))
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(visit(), 2)
    with pytest.raises(EngineFailed):
        await waiting[0]
    assert now() == 2


@virtual_time
async def test_a_runner_that_ends_fails_its_items() -> None:
    """Whatever ends a runner, its callers get an error, and the batcher is unhealthy."""

    async def infer(items: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(1)
        raise asyncio.CancelledError

    engine = FakeEngine()
    engine.infer = infer  # type: ignore[method-assign]  # the fake of a fake
    async with batcher(engine) as b:
        computed = task(b, 0)
        await asyncio.sleep(0.5)
        waits = task(b, 1)
        results = await outcomes(computed, waits)
        assert all(isinstance(result, EngineFailed) for result in results)
        assert not b.healthy
        with pytest.raises(Draining):
            await b.submit(2, 100)


@virtual_time
async def test_a_second_batch_is_handed_over_before_the_first_ends() -> None:
    """With two batches in flight, the next one is handed over just before the engine is free."""
    engine = FakeEngine()
    handed: list[float] = []
    infer = engine.infer

    async def noting(items: Sequence[int]) -> list[int | Exception]:
        handed.append(now())
        return await infer(items)

    engine.infer = noting  # type: ignore[method-assign]  # the fake of a fake
    async with batcher(engine, max_in_flight=2) as b:
        first = task(b, 0)
        await asyncio.sleep(0.2)
        second = task(b, 1)
        await asyncio.sleep(0.2)
        third = task(b, 2)
        answers = await asyncio.gather(first, second, third)

    assert engine.batches == [[0], [1, 2]]
    assert 0.9 <= handed[1] < 1.0
    assert engine.began == [0, 1]
    assert answers[1].infer_seconds == pytest.approx(2 - handed[1])


@virtual_time
async def test_a_full_batch_is_handed_over_at_once() -> None:
    """It cannot grow, so it is handed over if another batch may be in flight."""
    engine = FakeEngine()
    async with batcher(engine, max_in_flight=2, max_batch_size=2) as b:
        first = task(b, 0)
        await asyncio.sleep(0.1)
        rest = [task(b, item) for item in (1, 2, 3)]
        await asyncio.sleep(0.1)
        assert engine.batches == [[0], [1, 2]]
        assert (b.in_flight, b.queued) == (2, 1)
        await asyncio.gather(first, *rest)


@virtual_time
async def test_an_engine_that_is_early_gets_the_next_batch_at_once() -> None:
    """The timer set for the predicted end does not delay it."""
    engine = FakeEngine(lambda size: 0.3)
    async with batcher(engine, max_in_flight=2, latency=table()) as b:
        await asyncio.gather(task(b, 0), *[task(b, item) for item in range(1, 3)])
        first = task(b, 3)
        await asyncio.sleep(0.1)
        second = task(b, 4)
        await asyncio.gather(first, second)
    assert engine.began[-1] == pytest.approx(engine.began[-2] + 0.3)


@virtual_time
async def test_max_queue_delay_waits_for_more_items() -> None:
    """The oldest item waits at most that long, and a full batch runs at once."""
    engine = FakeEngine()
    async with batcher(engine, max_queue_delay=0.5, max_batch_size=2) as b:
        alone = await b.submit(0, 100)
        pair = await asyncio.gather(task(b, 1), task(b, 2))
    assert alone.queue_seconds == pytest.approx(0.5)
    assert pair[0].queue_seconds == 0
    assert engine.batches == [[0], [1, 2]]


@virtual_time
async def test_max_queue_delay_misses_no_deadline() -> None:
    """A delay of an hour is cut short by the first deadline."""
    engine = FakeEngine()
    async with batcher(engine, max_queue_delay=3600) as b:
        answer = await b.submit(0, 3)
        assert answer.queue_seconds > 1.5
        waiting = task(b, 1, 10_000)
        await asyncio.sleep(1)
    assert waiting.done()
    assert now() < 10, "draining does not wait for more items"


@virtual_time
async def test_on_batch_may_raise(caplog: pytest.LogCaptureFixture) -> None:
    """An exception of `on_batch` is logged and affects no caller."""

    def listener(report: BatchReport) -> None:
        raise ZeroDivisionError

    async with batcher(FakeEngine(), on_batch=listener) as b:
        assert [(await b.submit(item, 9)).value for item in (1, 2)] == [2, 4]
        assert b.healthy
    assert "on_batch failed" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_size": 0},
        {"max_batch_size": 9},
        {"max_queue_size": 0},
        {"max_in_flight": 0},
        {"max_failures": 0},
        {"max_queue_delay": -1.0},
    ],
)
def test_batcher_rejects_arguments_out_of_range(settings: dict[str, float]) -> None:
    """A batcher that cannot keep its guarantees is not created."""

    @virtual_time
    async def scenario() -> None:
        with pytest.raises(ValueError, match="must be"):
            batcher(FakeEngine(), **settings)

    scenario()


@virtual_time
async def test_switch_uses_the_new_engine_from_the_next_batch_on() -> None:
    """Items in the queue are processed by the new engine and predicted by its table; the batch in
    flight keeps its own."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=2) as running:
        first = task(running, 0)
        await asyncio.sleep(0.5)
        waiting = [task(running, item) for item in range(1, 5)]
        await asyncio.sleep(0)
        engine.seconds = lambda size: 4.0
        running.switch(table(engine.seconds))
        assert (await first).infer_seconds == 1
        assert [(await answer).infer_seconds for answer in waiting] == [4] * 4
        assert engine.batches == [[0], [1, 2], [3, 4]]
        with pytest.raises(DeadlineUnreachable):
            await running.submit(9, timeout=2)


@virtual_time
async def test_switch_learns_nothing_from_the_old_engine() -> None:
    """However long the batch took that was in flight at the switch."""
    engine = FakeEngine(lambda size: 50.0)
    async with batcher(engine, latency=table()) as running:
        first = task(running, 1, timeout=1000)
        await asyncio.sleep(0.5)
        new = table(lambda size: 1.0)
        running.switch(new)
        margin = running.margin
        await first
        assert new.seconds(1) == 1 and running.margin == margin
        assert running.busy_seconds == 50, "the clock of the metrics goes on"


@virtual_time
async def test_switch_resets_failures_and_memory() -> None:
    """Failures, and memory that ran out, belong to the old engine."""
    engine = FakeEngine()
    engine.memory = 0
    async with batcher(engine, max_failures=1) as running:
        crowd = [task(running, item) for item in range(8)]
        await asyncio.gather(*crowd, return_exceptions=True)
        before = running.healthy, running.size_limit
        steady, shaky = table(), LatencyTable({n: [1.0, 1.1, 0.9] for n in (1, 2, 4, 8)})
        running.switch(steady)
        assert (before, running.healthy, running.size_limit) == ((False, 1), True, 8)
        margin = running.margin
        running.switch(shaky)
        assert margin < running.margin == 3 * shaky.spread
        await outcomes(task(running, 1))
        assert not running.healthy, "max_failures are asked of the new one, and no more"


@virtual_time
async def test_switch_rejects_other_buckets() -> None:
    """The new engine must have the same buckets."""
    async with batcher(FakeEngine()) as running:
        with pytest.raises(ValueError, match="buckets"):
            running.switch(table(buckets=(1, 2, 4)))


@virtual_time
async def test_answered_items_are_released() -> None:
    """Items may be large. Only those of the last batch are held after their callers have the
    answers."""

    class Image:
        pass

    async def infer(images: Sequence[Image]) -> Sequence[int | Exception]:
        await asyncio.sleep(1)
        return [1] * len(images)

    seen = []
    async with Batcher(infer, latency=table(), max_batch_size=8, max_queue_size=8, clock=now) as b:
        for _ in range(3):
            image = Image()
            seen.append(weakref.ref(image))
            await b.submit(image, 10)
        del image
        gc.collect()
        assert [ref() is None for ref in seen[:2]] == [True, True]


@virtual_time
async def test_batcher_accepts_nothing_before_it_is_entered() -> None:
    """It is not healthy either, because no task would compute a batch."""
    b = batcher(FakeEngine())
    assert not b.healthy
    with pytest.raises(Draining):
        await b.submit(1, 10)
