"""The batcher as its callers and the engine see it."""

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
from tests.batching.fakes import FakeEngine, Reports, batcher, table, task
from tests.batching.virtual_time import virtual_time


async def outcomes(*tasks: asyncio.Task[object]) -> list[object]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual_time
async def test_a_lone_item_leaves_at_once() -> None:
    """An idle engine waits for no company."""
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
    """What arrives during a batch leaves with the next, in order, padded to a bucket."""
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
async def test_no_batch_is_larger_than_allowed_size() -> None:
    """max_batch_size holds even where the table knows larger buckets."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=3) as b:
        await asyncio.gather(*(task(b, item) for item in range(8)))

    assert [len(batch) for batch in engine.batches] == [3, 3, 2]


@virtual_time
async def test_the_most_urgent_leave_first() -> None:
    """Earliest deadline first; equal ones in order of arrival."""
    engine = FakeEngine()
    async with batcher(engine, max_batch_size=2) as b:
        first = task(b, 0)
        await asyncio.sleep(0.1)
        rest = [task(b, item, timeout) for item, timeout in [(1, 50), (2, 50), (3, 9), (4, 50)]]
        await asyncio.gather(first, *rest)

    assert engine.batches == [[0], [3, 1], [2, 4]]


@virtual_time
async def test_a_full_queue_refuses_at_once() -> None:
    """The bound holds, and the refusal says when what waits will be done."""
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
async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """The running batch needs 0.5 s more and its own 1 s: 1.2 s are too few, and 2 s are enough."""
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
def test_no_time_is_not_enough(timeout: float) -> None:
    """Even for an idle engine."""

    @virtual_time
    async def scenario() -> None:
        async with batcher(FakeEngine()) as b:
            with pytest.raises(DeadlineUnreachable):
                await b.submit(1, timeout)

    scenario()


@virtual_time
async def test_a_newcomer_must_not_make_another_late() -> None:
    """Its own early deadline could be met, but only at the expense of one accepted before."""
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
async def test_a_cancelled_caller_frees_its_place() -> None:
    """An item nobody waits for is not computed, and its batch-mates are."""
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
async def test_a_caller_that_leaves_mid_batch_harms_nobody() -> None:
    """Its outcome is dropped; the others get theirs."""
    engine, reports = FakeEngine(), Reports()
    async with batcher(engine, on_batch=reports) as b:
        gone, kept = task(b, 1), task(b, 2)
        await asyncio.sleep(0.5)
        gone.cancel()
        assert (await kept).value == 4

    assert engine.batches == [[1, 2]]
    assert (reports[0].answered, reports[0].gone) == (1, 1)


@virtual_time
async def test_a_deadline_that_passes_while_computing_is_a_timeout() -> None:
    """The caller hears at the deadline, not when the engine comes back."""
    engine = FakeEngine(lambda size: 10.0)
    async with batcher(engine, latency=table()) as b:
        with pytest.raises(TimeoutError):
            await b.submit(1, 4)
        assert now() == 4


@virtual_time
async def test_what_can_no_longer_make_it_is_refused_not_computed() -> None:
    """The first batch takes five times as long as foreseen; who then has no time left is told."""
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
async def test_one_bad_outcome_fails_its_item_only() -> None:
    """An outcome that is an exception is that item's, and its cause is kept."""
    engine = FakeEngine()
    engine.bad = {2}
    async with batcher(engine) as b:
        results = await outcomes(*(task(b, item) for item in (1, 2, 3)))

    assert isinstance(results[1], EngineFailed)
    assert isinstance(results[1].__cause__, ValueError)
    assert [getattr(result, "value", None) for result in results] == [2, None, 6]
    assert engine.batches == [[1, 2, 3]]


@virtual_time
async def test_a_failing_batch_is_halved_until_the_culprit_is_alone() -> None:
    """Batch-mates do not share its fate, and those computed are not computed again."""
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
async def test_a_caller_that_has_left_is_not_computed_again() -> None:
    """The retry in halves asks again who still waits."""
    engine = FakeEngine()
    engine.poison = {0}
    async with batcher(engine) as b:
        tasks = [task(b, item) for item in range(4)]
        await asyncio.sleep(0.5)
        tasks[3].cancel()
        await outcomes(*tasks)

    assert engine.batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2]]


@virtual_time
async def test_halves_are_not_computed_for_who_is_late_by_now() -> None:
    """Refused, when the second try could not be in time."""
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
async def test_halves_are_computed_for_who_can_still_make_it() -> None:
    """Its own time is asked of each, not that of the halves that come after it: 2.5 s for four,
    1.5 s for two and 1 s alone."""
    engine = FakeEngine(lambda size: 0.5 + 0.5 * size)
    engine.poison = {1}
    async with batcher(engine) as b:
        results = await outcomes(*(task(b, n, timeout) for n, timeout in enumerate([5.1, 9, 9, 9])))

    assert [getattr(result, "value", None) for result in results] == [0, None, 4, 6]
    assert engine.batches == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3]]


@virtual_time
async def test_newcomers_are_told_of_the_halves_still_to_come() -> None:
    """Nobody is let in who could only have been in time if the batch had not failed."""
    engine = FakeEngine()
    engine.poison = set(range(8))
    async with batcher(engine) as b:
        tasks = [task(b, item) for item in range(8)]
        await asyncio.sleep(1.5)  # the first half is being computed
        with pytest.raises(DeadlineUnreachable):
            await b.submit(9, 2.4)
        await outcomes(*tasks)


@virtual_time
async def test_an_engine_that_fails_teaches_nothing() -> None:
    """However long that takes it."""
    engine = FakeEngine(lambda size: 5.0)
    engine.broken = True
    async with batcher(engine, latency=(learned := table())) as b:
        margin = b.margin
        for _ in range(5):
            await outcomes(task(b, 1))
        assert len(engine.batches) == 5
        assert (learned.seconds(1), b.margin) == (1.0, margin)


@virtual_time
async def test_an_answer_that_is_none_fails_the_batch() -> None:
    """And neither the runner nor what it keeps of the engine."""

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
async def test_a_wrong_number_of_outcomes_fails_the_batch() -> None:
    """No caller gets another's answer."""

    async def infer(items: Sequence[int]) -> list[int | Exception]:
        return [0] * (len(items) - 1 if len(items) > 1 else 1)

    engine = FakeEngine()
    engine.infer = infer  # type: ignore[method-assign]  # the fake of a fake
    async with batcher(engine) as b:
        results = await outcomes(task(b, 1), task(b, 2))

    assert [getattr(result, "batch_size", None) for result in results] == [1, 1]


@virtual_time
async def test_out_of_memory_caps_the_batches_for_a_while() -> None:
    """Nobody fails; batches stay below the bucket that did not fit; later it is tried again."""
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
async def test_an_engine_that_fails_everything_is_unhealthy_until_it_does_not() -> None:
    """max_failures batches in a row of which nothing succeeded; one success clears it."""
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
async def test_an_engine_that_fails_too_late_is_unhealthy_as_well() -> None:
    """Nobody waits any more when it fails; it has failed all the same."""
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
async def test_an_engine_that_computes_for_nobody_is_healthy() -> None:
    """Its callers have left; it has not failed."""
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
async def test_a_bad_time_is_lived_down() -> None:
    """An engine that was so slow that everybody had to be refused is used again when it is not."""
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
async def test_an_engine_that_hangs_gets_no_more() -> None:
    """Callers are told at their deadlines; soon nobody is let in any more."""
    engine = FakeEngine(lambda size: 3600.0)
    async with batcher(engine, latency=table()) as b:
        first = task(b, 0, 5)
        await asyncio.sleep(20)
        with pytest.raises(DeadlineUnreachable):
            await b.submit(1, 10)
        with pytest.raises(TimeoutError):
            await first


@virtual_time
async def test_an_engine_is_dead_that_takes_a_hundred_times_as_long() -> None:
    """Whoever asks every second is told so, and health turns red."""
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
    """At once, and batches that take as long as predicted never stall it, however many wait."""
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
async def test_who_waits_for_a_dead_engine_is_told_at_once() -> None:
    """Those in its hands, those in the queue and those who come later; it drains as soon as the
    engine comes back, and nothing more is computed."""
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
async def test_drain_answers_what_waits_and_refuses_what_is_new() -> None:
    """And returns only when the last answer is out."""
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
    """Closing order is right by construction."""
    engine = FakeEngine()
    async with batcher(engine) as b:
        accepted = task(b, 1)
        await asyncio.sleep(0)
    assert accepted.done()
    with pytest.raises(Draining):
        await b.submit(2, 100)


@virtual_time
async def test_who_cannot_wait_for_the_engine_leaves_no_runner() -> None:
    """Leaving that is itself cancelled, because the engine hangs, gives up its batch."""
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
async def test_a_runner_that_dies_leaves_nobody_waiting() -> None:
    """Whatever ends it, its callers hear of it, and health turns red."""

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
async def test_a_second_batch_is_in_flight_while_one_computes() -> None:
    """Two slots: the next batch is handed over just before the engine is free."""
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
async def test_a_full_batch_does_not_wait_for_the_engine() -> None:
    """It cannot grow any more, so a free slot takes it."""
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
    """The alarm set for the predicted end does not delay it."""
    engine = FakeEngine(lambda size: 0.3)
    async with batcher(engine, max_in_flight=2, latency=table()) as b:
        await asyncio.gather(task(b, 0), *[task(b, item) for item in range(1, 3)])
        first = task(b, 3)
        await asyncio.sleep(0.1)
        second = task(b, 4)
        await asyncio.gather(first, second)
    assert engine.began[-1] == pytest.approx(engine.began[-2] + 0.3)


@virtual_time
async def test_max_queue_delay_waits_for_company() -> None:
    """The oldest waits that long at most, and a full batch leaves at once."""
    engine = FakeEngine()
    async with batcher(engine, max_queue_delay=0.5, max_batch_size=2) as b:
        alone = await b.submit(0, 100)
        pair = await asyncio.gather(task(b, 1), task(b, 2))
    assert alone.queue_seconds == pytest.approx(0.5)
    assert pair[0].queue_seconds == 0
    assert engine.batches == [[0], [1, 2]]


@virtual_time
async def test_waiting_for_company_never_misses_a_deadline() -> None:
    """An hour of patience is cut short by the first deadline."""
    engine = FakeEngine()
    async with batcher(engine, max_queue_delay=3600) as b:
        answer = await b.submit(0, 3)
        assert answer.queue_seconds > 1.5
        waiting = task(b, 1, 10_000)
        await asyncio.sleep(1)
    assert waiting.done()
    assert now() < 10, "drain waits for nobody's company"


@virtual_time
async def test_a_report_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What listens to reports cannot harm the callers."""

    def listener(report: BatchReport) -> None:
        raise ZeroDivisionError

    async with batcher(FakeEngine(), on_batch=listener) as b:
        assert [(await b.submit(item, 9)).value for item in (1, 2)] == [2, 4]
        assert b.healthy
    assert "on_batch failed" in caplog.text


@virtual_time
async def test_a_report_tells_what_happened() -> None:
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
async def test_a_report_counts_who_has_gone_once(broken: bool) -> None:
    """Neither as answered nor as failed, whatever the engine made of their items."""
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
def test_settings_out_of_bounds_are_refused(settings: dict[str, float]) -> None:
    """A batcher that cannot keep its promises is not built."""

    @virtual_time
    async def scenario() -> None:
        with pytest.raises(ValueError, match="must be"):
            batcher(FakeEngine(), **settings)

    scenario()


@virtual_time
async def test_another_engine_takes_over_between_two_batches() -> None:
    """Who waits is computed by it, and by its times; the batch in flight keeps its own."""
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
async def test_the_old_engine_teaches_the_new_ones_table_nothing() -> None:
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
async def test_another_engine_starts_without_a_past() -> None:
    """Failures, and memory that ran out, were the old one's."""
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
async def test_another_engine_must_have_the_same_buckets() -> None:
    async with batcher(FakeEngine()) as running:
        with pytest.raises(ValueError, match="buckets"):
            running.switch(table(buckets=(1, 2, 4)))


@virtual_time
async def test_what_was_answered_is_forgotten() -> None:
    """An image is large; but for the last batch, none is held once its caller has the answer."""

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
async def test_before_it_is_entered_nothing_is_accepted() -> None:
    """And it is not healthy: nobody would compute anything."""
    b = batcher(FakeEngine())
    assert not b.healthy
    with pytest.raises(Draining):
        await b.submit(1, 10)
