"""Batcher: the awaiting part. Callers `submit` one item each; the engine gets batches.

Promises
- Every `submit` ends exactly once: with an answer, a refusal, EngineFailed, or TimeoutError when
  its time is up. Cancelling it takes its item out of the queue.
- Refusals are immediate where they can be foreseen. What was accepted is not computed any more
  once its caller has left or its deadline cannot be met.
- Nothing waits without a bound: the queue has one, and every item a deadline.
- A batch that fails fails its own callers, if it must; the runner goes on.
- A fault in the rules, the clock or the latency table fails the requests it concerns at once; the
  runner goes on with the next ones.

One runner per slot closes a batch and serves it; only one of them closes at a time. When and
what, `policy` decides; what happens to it then, `serving` says. Everything runs on one event loop.

Time is `time.monotonic`, not the loop's: uvloop's counts whole milliseconds and stands still
while callbacks run, and a batch may take less than one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Generic

from batching.completion import on_error, reject
from batching.errors import DeadlineUnreachable, Draining, EngineDead, EngineFailed, QueueFull
from batching.latency import LatencyTable
from batching.policy import Policy
from batching.queue import BatchQueue
from batching.report import Answer, BatchReport
from batching.serving import BatchRun, Entry, In, Infer, Out, failed
from batching.watchdog import Watchdog

log = logging.getLogger(__name__)


class Batcher(Generic[In, Out]):
    """`async with Batcher(...)` starts it; leaving drains it."""

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
        """`infer` gives one outcome per item, in order; an outcome that is an exception fails its
        item alone. `latency` says what a batch of up to `max_batch_size` takes, and learns. The
        engine computes in `lanes` of which each takes a batch at a time; with less in flight than
        that the others are never used."""
        if not 1 <= max_batch_size <= latency.largest:
            raise ValueError(f"max_batch_size must be from 1 to {latency.largest}")
        if min(max_queue_size, max_in_flight, lanes, max_failures) < 1 or max_queue_delay < 0:
            raise ValueError("sizes and counts must be at least 1, the delay at least 0")
        self._infer = infer
        self._policy = Policy(latency, max_batch_size, min(lanes, max_in_flight))
        self._queue = BatchQueue[Entry[In, Out]](max_queue_size)
        self._slots = max_in_flight
        self._max_queue_delay = max_queue_delay
        self._max_failures = max_failures
        self._on_batch = on_batch
        self._clock = clock
        self._failures = 0
        self._draining = False
        self._watchdog = Watchdog()
        self._dead = False
        self._in_hand = set[BatchRun[In, Out]]()
        self._runners: list[asyncio.Task[None]] = []
        self._alive = 0
        self._closing = asyncio.Lock()
        self._alarm: asyncio.Future[None] | None = None
        self._alarm_at = math.inf

    async def __aenter__(self) -> Batcher[In, Out]:
        self._loop = asyncio.get_running_loop()
        self._alive = self._slots
        self._runners = [self._loop.create_task(self._run()) for _ in range(self._slots)]
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
        timeout: float,  # noqa: ASYNC109 - foreseen, not only enforced
    ) -> Answer[Out]:
        """The answer for `item`, within `timeout` seconds or not at all.

        Raises Draining, QueueFull, DeadlineUnreachable or EngineDead at once; later
        DeadlineUnreachable, TimeoutError or EngineFailed, of which EngineDead is one.
        """
        entry = self.join(item, timeout)
        timer = self._loop.call_later(timeout, entry.expire)
        try:
            return await entry.answer
        except BaseException:
            self.leave(entry)
            raise
        finally:
            timer.cancel()
            del entry  # or its failure, whose traceback has this frame, would keep itself

    def join(self, item: In, timeout: float) -> Entry[In, Out]:
        """The part of `submit` that does not wait, for callers that watch the time themselves and
        `leave`. Raises Draining, QueueFull, DeadlineUnreachable or EngineDead."""
        now, queue, policy = self._clock(), self._queue, self._policy
        policy.arrivals.note(now)
        if self._dead:
            raise EngineDead("the engine did not come back from another batch")
        if self._draining or not self._alive:
            raise Draining("not accepting", policy.drained_at(len(queue), now) - now)
        if queue.full:
            soon = policy.drained_at(len(queue), now) - now
            raise QueueFull(f"{len(queue)} items wait already", soon)
        late = policy.lateness(queue.deadlines, now + timeout, now)
        if late is not None:
            raise DeadlineUnreachable(f"the answer would be {late:.3g} s late", late)
        entry = Entry(item, now, now + timeout, self._loop.create_future())
        queue.put(entry)
        self._reconsider()
        return entry

    def leave(self, entry: Entry[In, Out]) -> None:
        """Nobody waits for its answer any more. A no-op once it is answered."""
        self._queue.discard(entry)
        entry.answer.cancel()

    def switch(self, latency: LatencyTable) -> None:
        """From the next batch on `infer` takes what `latency` says, since something else computes
        behind it. Who waits goes on waiting; what is in flight teaches the new table nothing.

        Raises ValueError where the buckets are others.
        """
        self._policy.switch(latency)
        self._failures = 0
        self._reconsider()

    async def drain(self) -> None:
        """Refuse what is new, answer what waits, return when the engine has given all back.

        That takes as long as the engine does: a caller whose engine may hang bounds it.
        """
        self._draining = True
        self._wake()
        if self._runners:
            await asyncio.wait(self._runners)

    def engine_is_dead(self) -> bool:
        """Only a new one helps. To be asked every second or so, as `watchdog` says."""
        self._dead |= self._watchdog.look(self._policy.timeline.current, self._clock())
        return self._dead

    @property
    def engine_is_stalled(self) -> bool:
        """The engine has made no progress on a batch for long, as `watchdog` says. Needs
        `engine_is_dead` to be called every second or so."""
        return self._watchdog.stalled(self._policy.timeline.current)

    def abandon(self) -> None:
        """The engine is given up: tell everybody who waits for it, and who is new, EngineDead.

        Draining still takes until the engine comes back, which may be never.
        """
        self._draining = self._dead = True
        for serving in self._in_hand:
            serving.abandon()
        for entry in self._queue.take(len(self._queue)):
            entry.fail(EngineDead("the engine did not come back from another batch"))
        self._wake()

    @property
    def healthy(self) -> bool:
        """All runners alive, the engine not dead and not failing on everything: `max_failures`
        batches in a row of which it computed no item, whether or not anybody still waited."""
        return (
            (self._draining or 0 < self._alive == self._slots)
            and self._failures < self._max_failures
            and not self._dead
        )

    @property
    def queued(self) -> int:
        """Items that wait."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Batches in the engine's hands."""
        return len(self._policy.timeline)

    @property
    def size_limit(self) -> int:
        """The largest batch at the moment: less than `max_batch_size` where memory ran out."""
        return self._policy.size_limit(self._clock())

    @property
    def margin(self) -> float:
        """The share of a predicted time that is kept in reserve, as learned so far."""
        return self._policy.timeline.margin.share

    @property
    def busy_seconds(self) -> float:
        """How long the engine has had work, in all."""
        return self._policy.timeline.busy_seconds(self._clock())

    @property
    def draining(self) -> bool:
        return self._draining

    async def _run(self) -> None:
        """One per slot."""
        try:
            while await self._serve_next():
                pass
        finally:
            self._alive -= 1
            if not self._alive:
                for entry in self._queue.take(len(self._queue)):
                    entry.fail(EngineFailed("nobody is left to compute this item"))

    async def _serve_next(self) -> bool:
        """False: there is nothing more to serve. A fault fails the batch that it happened in; one
        between two batches fails all that wait, since it would happen again for them."""
        batch: list[Entry[In, Out]] | None = None
        try:
            if batch := await self._next_batch():  # empty only when drained
                await self._serve(batch)
        except Exception as error:
            self._failures += 1
            for entry in self._queue.take(len(self._queue)) if batch is None else batch:
                entry.fail(failed(error))
            log.exception("the batcher failed")
        return batch is None or bool(batch)

    async def _next_batch(self) -> list[Entry[In, Out]]:
        """Closed as late as possible: while the engine is busy the queue grows, so batches grow
        with the load by themselves."""
        async with self._closing:
            while self._queue or not self._draining:
                now = self._clock()
                if (due := self._due(now)) > now:
                    await self._sleep(due, now)
                elif batch := self._cut(now):
                    return batch
        return []

    async def _serve(self, batch: list[Entry[In, Out]]) -> None:
        serving = BatchRun(batch, self._infer, self._policy, self._clock, self._reconsider)
        self._in_hand.add(serving)
        try:
            report = await serving.run()
        finally:
            self._in_hand.remove(serving)
        self._failures = 0 if serving.computed else self._failures + 1
        if self._on_batch is not None:
            try:
                self._on_batch(report)
            except Exception:
                log.exception("on_batch failed")

    def _cut(self, now: float) -> list[Entry[In, Out]]:
        """The next batch, without those who can no longer make it."""
        lost, size = self._policy.cut(self._queue.deadlines, now)
        if lost:
            soon = self._policy.drained_at(len(self._queue) - lost, now) - now
            for entry in self._queue.take(lost):
                entry.fail(DeadlineUnreachable("batches took longer than foreseen", soon))
        return [entry for entry in self._queue.take(size) if entry.waiting]

    def _due(self, now: float) -> float:
        """When the next batch should be closed; never, as long as nobody waits."""
        if not self._queue:
            return math.inf
        patience = now
        if self._max_queue_delay and not self._draining:
            patience = self._queue.oldest() + self._max_queue_delay
        return self._policy.due_at(self._queue.deadlines, patience, now)

    async def _sleep(self, until: float, now: float) -> None:
        self._alarm, self._alarm_at = self._loop.create_future(), until
        timer = self._loop.call_later(until - now, self._wake) if until < math.inf else None
        try:
            await self._alarm
        finally:
            self._alarm = None
            if timer is not None:
                timer.cancel()

    def _reconsider(self) -> None:
        """Something has changed: wake the runner that sleeps, if a batch is due before it would."""
        alarm = self._alarm
        if alarm is not None and not alarm.done():
            with on_error(reject, alarm):
                if self._due(self._clock()) < self._alarm_at:
                    alarm.set_result(None)

    def _wake(self) -> None:
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)
