"""Batcher: callers submit one item each, and the engine receives batches.

The engine is the function `infer` that runs a batch. Guarantees:
- Every call of `submit` ends exactly once: with an answer, a rejection, EngineFailed, or
  TimeoutError at the deadline. If the call is canceled, its item is removed from the queue.
- An item is rejected on arrival if its answer is predicted to be late. An accepted item is not
  processed if its caller has canceled or if its deadline can no longer be met.
- The queue has a maximum size, and every item has a deadline.
- If a batch fails, no items of other batches fail.
- An error in the policy, the clock or the latency table fails the affected items immediately. The
  batcher continues with later items.

There are `max_in_flight` tasks. Each task repeatedly forms a batch, submits the batch to the engine
and answers the items of the batch. Only one task forms a batch at a time. `policy` decides when a
batch is formed and how large it is, and `batch_run` runs the batch. All code runs on one event
loop.

The default clock is `time.monotonic` instead of the event loop's clock. A batch may take less than
a millisecond, which is the resolution of uvloop's clock. In addition, uvloop's clock does not
advance while a callback runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Generic

from batching.batch_run import BatchRun, Entry, In, Infer, Out, engine_failed
from batching.errors import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from batching.latency import LatencyTable
from batching.policy import Policy
from batching.queue import Alarm, BatchQueue
from batching.report import Answer, BatchReport
from batching.watchdog import Watchdog

log = logging.getLogger(__name__)


class Batcher(Generic[In, Out]):
    """Forms batches of the submitted items and answers their callers.

    The batcher is an asynchronous context manager: entering starts the batcher, and leaving drains
    it.
    """

    def __init__(
        self,
        infer: Infer[In, Out],
        *,
        latency: LatencyTable,
        max_batch_size: int,
        max_queue_size: int,
        max_in_flight: int = 1,
        lanes: int = 1,
        max_queue_delay: float = 0.0,
        max_failures: int = 5,
        on_batch: Callable[[BatchReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            infer: Runs a batch; see `batch_run.Infer`.
            latency: Predicts the duration of a batch in seconds, and learns from each batch.
            max_batch_size: Maximum number of items in a batch, at most `latency.largest`.
            max_queue_size: Maximum number of items in the queue.
            max_in_flight: Maximum number of batches in flight. A batch is in flight from its
                submission to the engine until the engine returns its results.
            lanes: Number of batches that the engine runs at the same time. The engine queues
                further batches. Values above `max_in_flight` count as `max_in_flight`.
            max_queue_delay: Maximum number of seconds that an item waits for further items while
                the engine is idle.
            max_failures: Number of failed batches in a row after which `healthy` is false.
            on_batch: Function that receives a report after each batch. None: no function is called.
            clock: Returns the current time in seconds.

        Raises:
            ValueError: An argument is out of range.
        """
        if not 1 <= max_batch_size <= latency.largest:
            raise ValueError(f"max_batch_size must be from 1 to {latency.largest}")
        if min(max_queue_size, max_in_flight, lanes, max_failures) < 1 or max_queue_delay < 0:
            raise ValueError(
                "max_queue_size, max_in_flight, lanes and max_failures must be at least 1, "
                "max_queue_delay at least 0"
            )
        self._infer = infer
        self._policy = Policy(latency, max_batch_size, min(lanes, max_in_flight))
        self._queue = BatchQueue[Entry[In, Out]](max_queue_size)
        self._max_in_flight = max_in_flight
        self._max_queue_delay = max_queue_delay
        self._max_failures = max_failures
        self._on_batch = on_batch
        self._clock = clock
        self._failures = 0
        self._draining = False
        self._watchdog = Watchdog()
        self._dead = False
        self._batch_runs = set[BatchRun[In, Out]]()
        self._runners: list[asyncio.Task[None]] = []
        self._live_runners = 0
        self._forming = asyncio.Lock()
        self._alarm = Alarm()

    async def __aenter__(self) -> Batcher[In, Out]:
        self._loop = asyncio.get_running_loop()
        self._live_runners = self._max_in_flight
        self._runners = [self._loop.create_task(self._run()) for _ in range(self._max_in_flight)]
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.drain()
        finally:
            for runner in self._runners:
                runner.cancel()

    async def submit(
        self,
        item: In,
        timeout: float,  # noqa: ASYNC109  # used for predictions, not only enforced
    ) -> Answer[Out]:
        """Process `item` in a batch.

        Args:
            item: Passed to `infer` unchanged.
            timeout: Seconds until the deadline.

        Raises:
            Draining: The batcher accepts no new items.
            QueueFull: The queue holds its maximum number of items.
            DeadlineUnreachable: The answer would be late. This error is raised on arrival, or later
                if batches take longer than predicted.
            TimeoutError: The deadline passed.
            EngineDead: The engine does not return from a batch, and the batcher no longer uses the
                engine.
            EngineFailed: The engine failed on this item.
        """
        entry = self.enqueue(item, timeout)
        timer = self._loop.call_later(timeout, entry.expire)
        try:
            return await entry.answer
        except BaseException:
            self.cancel(entry)
            raise
        finally:
            timer.cancel()
            # Breaks a reference cycle: entry -> exception -> traceback -> this frame -> entry.
            del entry

    def enqueue(self, item: In, timeout: float) -> Entry[In, Out]:
        """Add `item` to the queue and return its entry, without waiting for the answer.

        The caller must await `entry.answer`, enforce the deadline, and call `cancel` if the caller
        stops waiting.

        Args:
            item: As in `submit`.
            timeout: As in `submit`.

        Raises:
            Draining, QueueFull, DeadlineUnreachable, EngineDead: As in `submit`.
        """
        now, queue, policy = self._clock(), self._queue, self._policy
        policy.arrivals.record(now)
        if self._dead:
            raise EngineDead("the engine is dead: it did not return from an earlier batch")
        if self._draining or not self._live_runners:
            raise Draining(
                "the batcher accepts no new items", policy.drained_at(len(queue), now) - now
            )
        if queue.full:
            retry_after = policy.drained_at(len(queue), now) - now
            raise QueueFull(f"the queue is full: it holds {len(queue)} items", retry_after)
        late = policy.seconds_late(queue.deadlines, now + timeout, now)
        if late is not None:
            raise DeadlineUnreachable(f"the answer would be {late:.3g} s late", late)
        entry = Entry(item, now, now + timeout, self._loop.create_future())
        queue.put(entry)
        self._wake_if_due()
        return entry

    def cancel(self, entry: Entry[In, Out]) -> None:
        """Cancel an entry because its caller stops waiting. Answered entries do not change."""
        self._queue.discard(entry)
        entry.answer.cancel()

    def switch(self, latency: LatencyTable) -> None:
        """Predict with another table from the next batch on, because `infer` uses another engine.

        Items in the queue keep waiting. The batcher learns nothing from batches that were submitted
        to the previous engine.

        Args:
            latency: Predicts the new engine's batches.

        Raises:
            ValueError: `latency` and the current table have different buckets. Buckets are the
                sizes that batches are padded to.
        """
        self._policy.switch(latency)
        self._failures = 0
        self._wake_if_due()

    async def drain(self) -> None:
        """Reject new items, answer the items in the queue, and return when all batches have ended.

        There is no timeout. If the engine may hang, the caller must set a timeout.
        """
        self._draining = True
        self._alarm.wake()
        if self._runners:
            await asyncio.wait(self._runners)

    def engine_is_dead(self) -> bool:
        """Check whether the engine is dead, as defined in `watchdog`.

        Callers must call this method about once per second.
        """
        self._dead |= self._watchdog.check(self._policy.timeline.current, self._clock())
        return self._dead

    @property
    def engine_is_stalled(self) -> bool:
        """Whether the engine is stalled, as defined in `watchdog`.

        The value is correct only if `engine_is_dead` is called about once per second.
        """
        return self._watchdog.stalled(self._policy.timeline.current)

    def abandon(self) -> None:
        """Stop using the engine: fail all items, including later items, with EngineDead.

        `drain` still waits until the engine returns, which may never happen.
        """
        self._draining = self._dead = True
        for batch_run in self._batch_runs:
            batch_run.abandon()
        for entry in self._queue.take(len(self._queue)):
            entry.fail(EngineDead("the engine is dead: it did not return from an earlier batch"))
        self._alarm.wake()

    @property
    def healthy(self) -> bool:
        """Whether the batcher can process items.

        The value is False if one of the batcher's tasks has ended, if the engine is dead, or if the
        latest `max_failures` batches failed. A batch counts as failed if the engine returned no
        result for any of its items.
        """
        return (
            (self._draining or 0 < self._live_runners == self._max_in_flight)
            and self._failures < self._max_failures
            and not self._dead
        )

    @property
    def queued(self) -> int:
        """Number of items in the queue."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Number of batches that were submitted to the engine and have not been returned yet."""
        return len(self._policy.timeline)

    @property
    def size_limit(self) -> int:
        """Current maximum batch size, which is below `max_batch_size` after memory ran out."""
        return self._policy.size_limit(self._clock())

    @property
    def margin(self) -> float:
        """Extra time that is currently added to predictions, as a share of the predicted time."""
        return self._policy.timeline.margin.share

    @property
    def busy_seconds(self) -> float:
        """Total computing time of the engine in seconds, averaged over all lanes."""
        return self._policy.timeline.busy_seconds(self._clock())

    async def _run(self) -> None:
        """Form and run batches until the batcher is drained.

        Each of the `max_in_flight` tasks runs this method.
        """
        try:
            while await self._run_next_batch():
                pass
        finally:
            self._live_runners -= 1
            if not self._live_runners:
                for entry in self._queue.take(len(self._queue)):
                    entry.fail(EngineFailed("the batcher has stopped"))

    async def _run_next_batch(self) -> bool:
        """Form and run one batch. Returns False if the batcher is drained.

        If running the batch raises an error, the items of the batch fail. If forming a batch
        raises an error, all items in the queue fail, because the error would occur again.
        """
        batch: list[Entry[In, Out]] | None = None
        try:
            if batch := await self._next_batch():  # empty only if the batcher is drained
                await self._compute(batch)
        except Exception as error:
            self._failures += 1
            for entry in self._queue.take(len(self._queue)) if batch is None else batch:
                entry.fail(engine_failed(error))
            log.exception("the batcher failed")
        return batch is None or bool(batch)

    async def _next_batch(self) -> list[Entry[In, Out]]:
        """Wait until the next batch is due, form the batch and return it.

        Batches are formed as late as possible. The queue grows while the engine is busy, so batches
        grow with the load.
        """
        async with self._forming:
            while self._queue or not self._draining:
                now = self._clock()
                if (due := self._due_at(now)) > now:
                    await self._alarm.sleep(due, now)
                elif batch := self._form_batch(now):
                    return batch
        return []

    async def _compute(self, batch: list[Entry[In, Out]]) -> None:
        batch_run = BatchRun(batch, self._infer, self._policy, self._clock, self._wake_if_due)
        self._batch_runs.add(batch_run)
        try:
            report = await batch_run.run()
        finally:
            self._batch_runs.remove(batch_run)
        self._failures = 0 if batch_run.computed else self._failures + 1
        if self._on_batch is not None:
            try:
                self._on_batch(report)
            except Exception:
                log.exception("on_batch failed")

    def _form_batch(self, now: float) -> list[Entry[In, Out]]:
        """Take the next batch from the queue, and fail entries that will miss their deadlines."""
        late, size = self._policy.form_batch(self._queue.deadlines, now)
        if late:
            retry_after = self._policy.drained_at(len(self._queue) - late, now) - now
            for entry in self._queue.take(late):
                entry.fail(DeadlineUnreachable("batches took longer than predicted", retry_after))
        return [entry for entry in self._queue.take(size) if entry.waiting]

    def _due_at(self, now: float) -> float:
        """Return the time at which the next batch should be formed; infinity for an empty queue."""
        if not self._queue:
            return math.inf
        wait_until = now
        if self._max_queue_delay and not self._draining:
            wait_until = self._queue.oldest() + self._max_queue_delay
        return self._policy.due_at(self._queue.deadlines, wait_until, now)

    def _wake_if_due(self) -> None:
        """Wake the task that waits in `_next_batch` if a batch is due before the task would wake.

        Must be called after every change that can make a batch due earlier.
        """
        self._alarm.wake_if_earlier(lambda: self._due_at(self._clock()))
