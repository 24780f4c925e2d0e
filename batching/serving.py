"""One batch's way through the engine: computed, answered, and isolated where the engine fails.

A batch that fails as a whole is computed again in halves until the culprits are alone, so that
they alone fail; those who were computed get their answers meanwhile, and nobody whose caller has
gone is computed again. Running out of memory is the same, and caps the batches that follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from batching.errors import DeadlineUnreachable, EngineDead, EngineFailed
from batching.policy import Policy
from batching.report import Answer, BatchReport, Outcomes

In = TypeVar("In")
Out = TypeVar("Out")

Infer = Callable[[Sequence[In]], Awaitable[Sequence[Out | Exception]]]


@dataclass(slots=True, eq=False)
class Entry(Generic[In, Out]):
    """An item, and the caller who waits for its answer."""

    item: In
    arrived: float
    deadline: float
    answer: asyncio.Future[Answer[Out]]

    @property
    def waiting(self) -> bool:
        return not self.answer.done()

    def fail(self, error: Exception) -> None:
        if self.waiting:
            self.answer.set_exception(error)

    def expire(self) -> None:
        self.fail(TimeoutError("the deadline has passed"))


class BatchRun(Generic[In, Out]):
    """For one batch. `freed` is called whenever the engine comes back."""

    def __init__(
        self,
        batch: Sequence[Entry[In, Out]],
        infer: Infer[In, Out],
        policy: Policy,
        clock: Callable[[], float],
        freed: Callable[[], None],
    ) -> None:
        self._batch = batch
        self._infer = infer
        self._policy = policy
        self._clock = clock
        self._freed = freed
        self._calls = self._answered = self._failed = 0
        self._out_of_memory = False
        self.computed = False
        """Did the engine compute any item, whether or not its caller was still there?"""

    async def run(self) -> BatchReport:
        """Answer everybody. Raises nothing but what ends the runner."""
        batch = self._batch
        try:
            closed = self._clock()
            begins = self._policy.timeline.begins_at(closed)
            predicted = begins + self._policy.table.seconds(len(batch))
            await self._compute(batch)
        except BaseException as error:
            for entry in batch:
                self._fail(entry, error)
            raise
        return BatchReport(
            size=len(batch),
            bucket=self._policy.table.bucket(len(batch)),
            oldest_queue_seconds=closed - min(entry.arrived for entry in batch),
            infer_seconds=self._clock() - closed,
            predicted_seconds=predicted - closed,
            answered=self._answered,
            failed=self._failed,
            gone=len(batch) - self._answered - self._failed,
            retries=self._calls - 1,
            out_of_memory=self._out_of_memory,
        )

    def abandon(self) -> None:
        """Nobody waits for the engine any more."""
        for entry in self._batch:
            if entry.waiting:
                self._failed += 1
                entry.fail(EngineDead("the engine did not come back from this item's batch"))

    async def _compute(self, entries: Sequence[Entry[In, Out]]) -> None:
        """Answer `entries`, if need be in halves."""
        timeline = self._policy.timeline
        handed = self._clock()
        flight = timeline.begin(len(entries), handed)
        self._calls += 1
        outcomes: Sequence[Out | Exception] = ()
        error: Exception | None = None
        computed = False
        try:
            outcomes = await self._infer([entry.item for entry in entries])
            computed = len(outcomes) == len(entries)
            if not computed:
                error = EngineFailed(f"{len(outcomes)} outcomes for {len(entries)} items")
        except Exception as raised:  # noqa: BLE001 - whatever it is, its callers get to hear it
            error = raised
        finally:
            try:
                ended = self._clock()
                done = outcomes.done if isinstance(outcomes, Outcomes) else ended
                timeline.end(flight, ended, done=done, computed=computed)
            finally:
                timeline.forget(flight)  # or the engine would seem busy for ever
                self._freed()
        if error is None:
            self._answer(entries, outcomes, handed, ended)
            return
        if isinstance(error, MemoryError):
            self._out_of_memory = True
            self._policy.memory.ran_out(self._policy.table.bucket(len(entries)), ended)
        if len(entries) == 1:
            self._fail(entries[0], error)
            return
        middle = len(entries) // 2
        first, second = entries[:middle], entries[middle:]
        with timeline.owing(len(second)):
            await self._compute_again(first)
        await self._compute_again(second)

    async def _compute_again(self, entries: Sequence[Entry[In, Out]]) -> None:
        """For those who still wait and can still be answered in time."""
        now = self._clock()
        soonest = self._policy.timeline.begins_at(now) + self._policy.table.seconds(1)
        for entry in entries:
            if entry.deadline < soonest:
                late = soonest - entry.deadline
                entry.fail(DeadlineUnreachable("the engine failed and took too long", late))
        if still := [entry for entry in entries if entry.waiting]:
            await self._compute(still)

    def _answer(
        self,
        entries: Sequence[Entry[In, Out]],
        outcomes: Sequence[Out | Exception],
        handed: float,
        ended: float,
    ) -> None:
        size = len(entries)
        bucket = self._policy.table.bucket(size)
        for entry, outcome in zip(entries, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(entry, outcome)
                continue
            self.computed = True
            if entry.waiting:
                self._answered += 1
                answer = Answer(outcome, handed - entry.arrived, ended - handed, size, bucket)
                entry.answer.set_result(answer)

    def _fail(self, entry: Entry[In, Out], cause: BaseException) -> None:
        if entry.waiting:
            self._failed += 1
            entry.fail(failed(cause))


def failed(cause: BaseException) -> EngineFailed:
    """What the caller of an item is told."""
    failure = EngineFailed("the engine failed on this item")
    failure.__cause__ = cause
    return failure
