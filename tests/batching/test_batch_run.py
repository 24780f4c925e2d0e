"""BatchRun: the engine's results and failures become the answers of a batch's items."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from batching import Answer, Batcher, BatchReport, DeadlineUnreachable, EngineDead, EngineFailed
from batching.batch_run import BatchRun, Entry
from batching.policy import Policy
from tests.batching.fakes import FakeEngine, Reports, batcher, now, outcomes, policy, table, task
from tests.batching.virtual_time import virtual_time


def entries(count: int, timeout: float = 100.0) -> list[Entry[int, int]]:
    """Items 0, 1, 2 and so on, which arrive now."""
    loop = asyncio.get_running_loop()
    return [
        Entry(item, arrived=now(), deadline=now() + timeout, answer=loop.create_future())
        for item in range(count)
    ]


def batch_run(
    batch: Sequence[Entry[int, int]],
    engine: FakeEngine,
    rules: Policy,
    on_return: Callable[[], None] = lambda: None,
) -> BatchRun[int, int]:
    return BatchRun(batch, engine.infer, rules, now, on_return)


async def results(batch: Sequence[Entry[int, int]]) -> list[Any]:
    return await asyncio.gather(*(entry.answer for entry in batch), return_exceptions=True)


@virtual_time
async def test_entry_keeps_its_first_outcome() -> None:
    """An item that was answered, failed or canceled no longer waits, and cannot fail afterwards."""
    answered, failed, canceled = entries(3)
    assert answered.waiting and failed.waiting and canceled.waiting
    answered.answer.set_result(Answer(1, 0.0, 0.0, 1, 1))
    failed.expire()
    canceled.answer.cancel()
    for entry in (answered, failed, canceled):
        assert not entry.waiting
        entry.fail(EngineFailed("too late"))
    first, second, third = await results([answered, failed, canceled])
    assert first.value == 1
    assert isinstance(second, TimeoutError) and isinstance(third, asyncio.CancelledError)


@virtual_time
async def test_answer_has_the_size_and_the_times_of_the_call_that_computed_it() -> None:
    """An item of a half waited until that half was handed over, failed calls included."""
    engine = FakeEngine()
    engine.poison = {3}
    batch = entries(4)
    await asyncio.sleep(0.25)
    await batch_run(batch, engine, policy()).run()
    first, second, third, _ = await results(batch)
    times = [(one.queue_seconds, one.infer_seconds) for one in (first, second, third)]
    assert times == [(1.25, 1.0), (1.25, 1.0), (3.25, 1.0)]
    sizes = [(one.batch_size, one.bucket) for one in (first, second, third)]
    assert sizes == [(2, 2), (2, 2), (1, 1)]


@virtual_time
async def test_on_return_is_called_after_each_call_of_the_engine() -> None:
    """It is called once for the batch and once for each half, after the call has left the
    timeline."""
    engine, rules = FakeEngine(), policy()
    engine.poison = {1}
    in_flight = []
    batch = entries(2)
    await batch_run(batch, engine, rules, lambda: in_flight.append(len(rules.timeline))).run()
    await results(batch)
    assert len(engine.batches) == 3
    assert in_flight == [0, 0, 0]


@pytest.mark.parametrize(
    ("bad", "canceled", "computed"),
    [(set(), {0, 1}, True), ({0}, set(), True), ({0, 1}, set(), False)],
    ids=["canceled", "one bad", "all bad"],
)
@virtual_time
async def test_computed_is_true_if_the_engine_computed_any_item(
    bad: set[int], canceled: set[int], computed: bool
) -> None:
    """Results of canceled callers count, and results that are exceptions do not."""
    engine = FakeEngine()
    engine.bad = bad
    batch = entries(2)
    run = batch_run(batch, engine, policy())
    assert not run.computed
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0.5)
    for item in canceled:
        batch[item].answer.cancel()
    await running
    assert run.computed is computed
    await results(batch)


@virtual_time
async def test_canceling_a_run_fails_its_items() -> None:
    """The cancellation ends the task, every item fails, and no batch counts as in flight."""
    rules, batch = policy(), entries(3)
    running = asyncio.create_task(batch_run(batch, FakeEngine(), rules).run())
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for result in await results(batch):
        assert isinstance(result, EngineFailed)
        assert isinstance(result.__cause__, asyncio.CancelledError)
    assert len(rules.timeline) == 0


@virtual_time
async def test_abandoned_items_count_once() -> None:
    """Items fail with EngineDead at once, and results that come later change neither them nor the
    counts."""
    batch = entries(3)
    run = batch_run(batch, FakeEngine(), policy())
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0.5)
    batch[0].answer.cancel()
    run.abandon()
    assert not any(entry.waiting for entry in batch)
    report = await running
    assert (report.answered, report.failed, report.gone) == (0, 2, 1)
    _, *failed = await results(batch)
    assert [type(result) for result in failed] == [EngineDead] * 2


@virtual_time
async def test_predictions_learn_from_the_moment_at_which_the_engine_finished() -> None:
    """Results that state `computed_at` are not counted as late when the event loop was."""

    class Results(list[int | Exception]):
        computed_at = 0.0

    async def infer(items: Sequence[int]) -> Results:
        results = Results(items)
        await asyncio.sleep(2)
        results.computed_at = now()
        await asyncio.sleep(3)  # the event loop is busy
        return results

    rules = policy()
    for _ in range(20):
        report = await BatchRun(entries(1), infer, rules, now, lambda: None).run()
        assert report.infer_seconds == 5
    assert rules.table.seconds(1) == pytest.approx(2, rel=0.05)


@virtual_time
async def test_an_item_that_alone_exceeds_the_memory_fails() -> None:
    """It is not computed again, and the report says that the memory ran out."""
    engine = FakeEngine()
    engine.memory = 0
    batch = entries(1)
    report = await batch_run(batch, engine, policy()).run()
    (result,) = await results(batch)
    assert isinstance(result, EngineFailed) and isinstance(result.__cause__, MemoryError)
    assert engine.batches == [[0]]
    assert report.out_of_memory and (report.failed, report.retries) == (1, 0)


@virtual_time
async def test_cancel_during_a_batch_drops_one_result() -> None:
    """The other items of the batch get their results."""
    engine, reports = FakeEngine(), Reports()
    async with batcher(engine, on_batch=reports) as b:
        gone, kept = task(b, 1), task(b, 2)
        await asyncio.sleep(0.5)
        gone.cancel()
        assert (await kept).value == 4

    assert engine.batches == [[1, 2]]
    assert (reports[0].answered, reports[0].gone) == (1, 1)


@virtual_time
async def test_a_result_that_is_an_exception_fails_its_item_only() -> None:
    """The exception is kept as the cause."""
    engine = FakeEngine()
    engine.bad = {2}
    async with batcher(engine) as b:
        results = await outcomes(*(task(b, item) for item in (1, 2, 3)))

    assert isinstance(results[1], EngineFailed)
    assert isinstance(results[1].__cause__, ValueError)
    assert [getattr(result, "value", None) for result in results] == [2, None, 6]
    assert engine.batches == [[1, 2, 3]]


@virtual_time
async def test_a_failing_batch_is_halved_until_one_item_fails() -> None:
    """The other items do not fail, and those that were computed are not computed again."""
    engine, reports = FakeEngine(), Reports()
    engine.poison = {2}
    async with batcher(engine, on_batch=reports) as b:
        results = await outcomes(*(task(b, item) for item in range(4)))
        assert b.healthy

    assert isinstance(results[2], EngineFailed)
    assert isinstance(results[2].__cause__, RuntimeError)
    assert [getattr(result, "value", None) for result in results] == [0, 2, None, 6]
    assert engine.batches == [[0, 1, 2, 3], [0, 1], [2, 3], [2], [3]]
    assert (reports[0].answered, reports[0].failed, reports[0].retries) == (3, 1, 4)


@virtual_time
async def test_halves_leave_out_canceled_items() -> None:
    """A half that is computed again contains only items that still wait."""
    engine = FakeEngine()
    engine.poison = {0}
    async with batcher(engine) as b:
        tasks = [task(b, item) for item in range(4)]
        await asyncio.sleep(0.5)
        tasks[3].cancel()
        await outcomes(*tasks)

    assert engine.batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2]]


@virtual_time
async def test_halves_leave_out_late_items() -> None:
    """Items that would be late in the second attempt are rejected."""
    engine = FakeEngine()
    engine.poison = {0}
    async with batcher(engine) as b:
        tasks = [task(b, item, 1.9 if item < 2 else 9) for item in range(4)]
        results = await outcomes(*tasks)

    for late in results[:2]:
        assert isinstance(late, DeadlineUnreachable)
        assert late.retry_after == pytest.approx(2.0 - 1.9)
    assert [getattr(result, "value", None) for result in results[2:]] == [4, 6]
    assert engine.batches == [[0, 1, 2, 3], [2, 3]]


@virtual_time
async def test_halves_keep_items_that_can_be_in_time() -> None:
    """Each item needs its own time only, not that of the halves after it: 2.5 s for four, 1.5 s for
    two and 1 s for one."""
    engine = FakeEngine(lambda size: 0.5 + 0.5 * size)
    engine.poison = {1}
    async with batcher(engine) as b:
        results = await outcomes(*(task(b, n, timeout) for n, timeout in enumerate([5.1, 9, 9, 9])))

    assert [getattr(result, "value", None) for result in results] == [0, None, 4, 6]
    assert engine.batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3]]


@virtual_time
async def test_failed_batches_change_no_prediction() -> None:
    """However long they take."""
    engine = FakeEngine(lambda size: 5.0)
    engine.broken = True
    async with batcher(engine, latency=(learned := table())) as b:
        margin = b.margin
        for _ in range(5):
            await outcomes(task(b, 1))
        assert len(engine.batches) == 5
        assert (learned.seconds(1), b.margin) == (1.0, margin)


@virtual_time
async def test_none_in_place_of_results_fails_the_batch() -> None:
    """The runner continues, and no batch counts as in flight."""

    async def forgetful(items: Sequence[int]) -> Sequence[int]:
        return None if items == [0] else items  # type: ignore[return-value]

    engine = FakeEngine()
    b = Batcher(forgetful, latency=table(), max_batch_size=8, max_queue_size=8, clock=now)
    async with b:
        with pytest.raises(EngineFailed):
            await b.submit(0, 10)
        assert b.in_flight == 0 and b.healthy
        assert (await b.submit(1, 10)).value == 1
    assert engine.batches == []


@virtual_time
async def test_a_wrong_number_of_results_fails_the_batch() -> None:
    """No caller gets the result of another item."""

    async def infer(items: Sequence[int]) -> list[int | Exception]:
        return [0] * (len(items) - 1 if len(items) > 1 else 1)

    engine = FakeEngine()
    engine.infer = infer  # type: ignore[method-assign]  # the fake of a fake
    async with batcher(engine) as b:
        results = await outcomes(task(b, 1), task(b, 2))

    assert [getattr(result, "batch_size", None) for result in results] == [1, 1]


@virtual_time
async def test_out_of_memory_limits_batches_for_a_while() -> None:
    """No item fails. Batches are smaller than the bucket that did not fit; later it is tried
    again."""
    engine, reports = FakeEngine(), Reports()
    engine.memory = 4
    async with batcher(engine, on_batch=reports) as b:
        results = await asyncio.gather(*(task(b, item) for item in range(16)))
        assert [result.value for result in results] == [2 * item for item in range(16)]
        assert [len(batch) for batch in engine.batches] == [8, 4, 4, 4, 4]
        assert [report.out_of_memory for report in reports] == [True, False, False]

        engine.memory = 8
        await asyncio.sleep(60)
        await asyncio.gather(*(task(b, item) for item in range(8)))
    assert len(engine.batches[-1]) == 8


@virtual_time
async def test_report_describes_a_batch() -> None:
    """Sizes, times and counts of one batch."""
    reports = Reports()
    engine = FakeEngine(lambda size: 1.5)
    async with batcher(engine, latency=table(), on_batch=reports) as b:
        first = task(b, 0)
        await asyncio.sleep(0.5)
        await asyncio.gather(first, *(task(b, item) for item in range(1, 4)))

    assert reports[1] == BatchReport(
        size=3,
        bucket=4,
        infer_seconds=1.5,
        predicted_seconds=1.0,
        answered=3,
        failed=0,
        gone=0,
        retries=0,
        out_of_memory=False,
    )


@pytest.mark.parametrize("broken", [False, True])
@virtual_time
async def test_report_counts_canceled_items_once(broken: bool) -> None:
    """They count neither as answered nor as failed, whatever their results are."""
    reports = Reports()
    engine = FakeEngine()
    engine.broken = broken
    async with batcher(engine, on_batch=reports) as b:
        tasks = [task(b, 0), task(b, 1), task(b, 2, 1.2), task(b, 3, 1.2)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        engine.seconds = lambda size: 5.0
        await outcomes(*tasks)

    (report,) = reports
    kept = 3 if not broken else 1
    assert (report.answered, report.failed)[broken] == kept
    assert report.answered + report.failed + report.gone == 4 and report.gone == 4 - kept


class Item:
    """An item that weak references can refer to."""


@pytest.mark.parametrize("failure", ["an exception", "too few results", "an exception of an item"])
@virtual_time
async def test_failed_batch_leaves_no_reference_cycles(failure: str) -> None:
    """Items of a failed batch are freed without a full garbage collection, since they can be large.

    From Python 3.12 on, the frames of a traceback refer to their callers, so that a collection of
    young objects is needed.
    """
    kept = list[weakref.ref[Item]]()

    async def infer(items: Sequence[Item]) -> Sequence[int | Exception]:
        kept.extend(weakref.ref(item) for item in items)
        if failure == "an exception":
            raise RuntimeError("broken")
        return [] if failure == "too few results" else [ValueError() for _ in items]

    async def fail() -> None:
        loop = asyncio.get_running_loop()
        batch = [Entry(Item(), now(), now() + 100, loop.create_future()) for _ in range(4)]
        await BatchRun(batch, infer, policy(), now, lambda: None).run()
        for entry in batch:
            assert isinstance(entry.answer.exception(), EngineFailed)

    gc.collect()
    gc.disable()
    try:
        await fail()
        if sys.version_info >= (3, 12):
            gc.collect(0)
        assert kept and not any(item() for item in kept)
    finally:
        gc.enable()
