"""BatchRun: submits one batch to the engine and answers the items of the batch.

If a batch fails, its two halves are run one after the other, and halves that fail are halved again.
Therefore, only the items that cause the error fail. The items of a half are answered as soon as the
engine returns that half. If the caller of an item has canceled, the item is not processed again. A
batch that does not fit into the device's memory is also halved, and the size of later batches is
limited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from batching.errors import DeadlineUnreachable, EngineDead, EngineFailed
from batching.policy import Policy
from batching.report import Answer, BatchReport

In = TypeVar("In")
Out = TypeVar("Out")

Infer = Callable[[Sequence[In]], Awaitable[Sequence[Out | Exception]]]
"""Runs a batch and returns one result for each item, in order. If a result is an exception, only
the item at that position fails.

The returned sequence may have an attribute `computed_at`: the time at which the engine finished the
batch, by the batcher's clock. If the attribute is missing, the batcher uses the time at which the
event loop received the results. In this case, a busy event loop makes batches seem slower than they
are."""


@dataclass(slots=True, eq=False)
class Entry(Generic[In, Out]):
    """An item in the queue or in a batch, and the future that its caller awaits."""

    item: In
    arrived: float
    """Time of arrival in seconds, by the batcher's clock."""
    deadline: float
    """Deadline in seconds, by the batcher's clock."""
    answer: asyncio.Future[Answer[Out]]

    @property
    def waiting(self) -> bool:
        """Whether the item still waits: the item has not been answered, failed or canceled."""
        return not self.answer.done()

    def fail(self, error: Exception) -> None:
        """Complete `answer` with `error`. Does nothing if `waiting` is false."""
        if self.waiting:
            self.answer.set_exception(error)

    def expire(self) -> None:
        """Fail the item because its deadline has passed."""
        self.fail(TimeoutError("the deadline has passed"))


class BatchRun(Generic[In, Out]):
    """Runs one batch. Each instance can be used once."""

    def __init__(
        self,
        batch: Sequence[Entry[In, Out]],
        infer: Infer[In, Out],
        policy: Policy,
        clock: Callable[[], float],
        on_return: Callable[[], None],
    ) -> None:
        """
        Args:
            batch: Entries of the batch, at least one.
            infer: Function that runs a batch on the engine; see `Infer`.
            policy: Learns how long the batch takes and whether the batch fits into memory.
            clock: Returns the current time in seconds.
            on_return: Function that is called each time the engine returns from a call.
        """
        self._batch = batch
        self._infer = infer
        self._policy = policy
        self._clock = clock
        self._on_return = on_return
        self._calls = self._answered = self._failed = 0
        self._out_of_memory = False
        self.computed = False
        """Whether the engine returned a result for at least one item of the batch.

        A result counts even if the caller has canceled the item.
        """

    async def run(self) -> BatchReport:
        """Run the batch, and answer or fail every entry in it.

        Errors of the engine are passed to the entries and are not raised.
        """
        batch = self._batch
        try:
            formed_at = self._clock()
            begins = self._policy.timeline.begins_at(formed_at)
            predicted = begins + self._policy.table.seconds(len(batch))
            await self._compute(batch)
        except BaseException as error:
            for entry in batch:
                self._fail(entry, error)
            raise
        return BatchReport(
            size=len(batch),
            bucket=self._policy.table.bucket(len(batch)),
            infer_seconds=self._clock() - formed_at,
            predicted_seconds=predicted - formed_at,
            answered=self._answered,
            failed=self._failed,
            gone=len(batch) - self._answered - self._failed,
            retries=self._calls - 1,
            out_of_memory=self._out_of_memory,
        )

    def abandon(self) -> None:
        """Fail all entries that still wait, because the engine is dead."""
        for entry in self._batch:
            if entry.waiting:
                self._failed += 1
                entry.fail(EngineDead("the engine did not return from this item's batch"))

    async def _compute(self, entries: Sequence[Entry[In, Out]]) -> None:
        """Run `entries` as one batch and answer them. If the batch fails, run its halves."""
        timeline = self._policy.timeline
        handed = self._clock()
        in_flight = timeline.begin(len(entries), handed)
        self._calls += 1
        results: Sequence[Out | Exception] = ()
        error: Exception | None = None
        computed = False
        try:
            results = await self._infer([entry.item for entry in entries])
            computed = len(results) == len(entries)
            if not computed:
                error = EngineFailed(
                    f"the engine returned {len(results)} results for {len(entries)} items"
                )
        except Exception as raised:  # noqa: BLE001  # reported to the callers
            # Breaks a reference cycle: entry -> exception -> traceback -> this frame -> entry.
            error = raised.with_traceback(raised.__traceback__ and raised.__traceback__.tb_next)
        finally:
            try:
                ended = self._clock()
                computed_at = getattr(results, "computed_at", ended)
                timeline.end(in_flight, ended, computed=computed, computed_at=computed_at)
            finally:
                timeline.forget(in_flight)  # otherwise the engine would count as busy forever
                self._on_return()
        if error is None:
            self._answer(entries, results, handed, ended)
            return
        if isinstance(error, MemoryError):
            self._out_of_memory = True
            self._policy.memory.ran_out(self._policy.table.bucket(len(entries)), ended)
        if len(entries) == 1:
            self._fail(entries[0], error)
            return
        middle = len(entries) // 2
        first, second = entries[:middle], entries[middle:]
        with timeline.reserve(len(second)):
            await self._compute_again(first)
        await self._compute_again(second)

    async def _compute_again(self, entries: Sequence[Entry[In, Out]]) -> None:
        """Run the entries that still wait and can still meet their deadlines."""
        now = self._clock()
        soonest = self._policy.timeline.begins_at(now) + self._policy.table.seconds(1)
        for entry in entries:
            if entry.deadline < soonest:
                late = soonest - entry.deadline
                entry.fail(
                    DeadlineUnreachable("the engine failed, and there is no time to retry", late)
                )
        if waiting := [entry for entry in entries if entry.waiting]:
            await self._compute(waiting)

    def _answer(
        self,
        entries: Sequence[Entry[In, Out]],
        results: Sequence[Out | Exception],
        handed: float,
        ended: float,
    ) -> None:
        size = len(entries)
        bucket = self._policy.table.bucket(size)
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, Exception):
                self._fail(entry, result)
                continue
            self.computed = True
            if entry.waiting:
                self._answered += 1
                answer = Answer(result, handed - entry.arrived, ended - handed, size, bucket)
                entry.answer.set_result(answer)

    def _fail(self, entry: Entry[In, Out], cause: BaseException) -> None:
        if entry.waiting:
            self._failed += 1
            entry.fail(engine_failed(cause))


def engine_failed(cause: BaseException) -> EngineFailed:
    """Return the error for an item whose batch raised `cause`."""
    error = EngineFailed("the engine failed on this item")
    error.__cause__ = cause
    return error
