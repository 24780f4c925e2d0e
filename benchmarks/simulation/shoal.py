"""Runs the real `batching.Batcher` on virtual time, with a simulated device."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence

from batching import Answer, Batcher, DeadlineUnreachable, LatencyTable, QueueFull
from benchmarks.simulation.devices import LARGEST, Clockwork
from benchmarks.simulation.outcome import Request
from tests.batching.virtual_time import run

WARM_UP_RUNS = 5
MAX_QUEUE_SIZE = 1024


def shoal(
    arrivals: Sequence[float],
    clockwork: Clockwork,
    slo: float,
    *,
    max_in_flight: int | None = None,
    prepare: float = 0.0,
    informed: bool = False,
) -> list[Request]:
    """Runs the batcher with the given arrivals, and returns the requests with their results.

    Args:
        arrivals: Arrival times of the requests in seconds, in ascending order.
        clockwork: The simulated device.
        slo: Timeout of every request in seconds.
        max_in_flight: Maximum number of batches that are submitted to the device and not finished.
            None: the number of lanes.
        prepare: Seconds that the host needs to prepare each batch for the device. The device can
            run another batch during that time.
        informed: Whether the batcher gets the device's exact times after the device has become
            slower. The batcher gets the times when the second batch that began after the change has
            ended. True is supported only with one batch in flight.
    """
    simulated = _Run(arrivals, clockwork, slo, prepare, informed)
    return run(simulated.serve(max_in_flight or clockwork.device.lanes))


class _InformedTable(LatencyTable):
    """A latency table that is set to the device's exact times after the device became slower.

    The table is set when the second batch that began after the change has ended.
    """

    def __init__(self, samples: Mapping[int, Sequence[float]], clockwork: Clockwork) -> None:
        super().__init__(samples)
        self._clockwork = clockwork
        self._informed = False

    def observe(self, size: int, seconds: float) -> None:
        if self._informed or self._clockwork.since_change < 2:
            super().observe(size, seconds)
            return
        device = self._clockwork.device
        self._measured = [device.slower * device.mean(bucket) for bucket in self.buckets]
        self._latest.clear()
        self._derive()
        self._informed = True


class _Run:
    def __init__(
        self,
        arrivals: Sequence[float],
        clockwork: Clockwork,
        slo: float,
        prepare: float,
        informed: bool,
    ) -> None:
        self.requests = [Request(arrived) for arrived in arrivals]
        self.clockwork = clockwork
        self.slo = slo
        self.prepare = prepare
        self.informed = informed

    async def serve(self, max_in_flight: int) -> list[Request]:
        loop = asyncio.get_running_loop()
        measured = {
            bucket: [self.prepare + seconds for seconds in runs]
            for bucket, runs in self.clockwork.warm_up(WARM_UP_RUNS).items()
        }
        table = (
            _InformedTable(measured, self.clockwork) if self.informed else LatencyTable(measured)
        )
        batcher = Batcher(
            self.infer,
            latency=table,
            max_batch_size=LARGEST,
            max_queue_size=MAX_QUEUE_SIZE,
            max_in_flight=max_in_flight,
            lanes=self.clockwork.device.lanes,
            clock=loop.time,
        )
        async with batcher:
            for request in self.requests:
                await _until(request.arrived)
                self.call(batcher, request)
            await _until(self.requests[-1].arrived + self.slo)
        return self.requests

    async def infer(self, items: Sequence[None]) -> Sequence[Exception | None]:
        now = asyncio.get_running_loop().time()
        await _until(self.clockwork.compute(len(items), now + self.prepare))
        return items

    def call(self, batcher: Batcher[None, None], request: Request) -> None:
        """Does the same as `Batcher.submit`, but without a task for each request."""
        loop = asyncio.get_running_loop()
        try:
            entry = batcher.enqueue(None, self.slo)
        except (DeadlineUnreachable, QueueFull):
            request.accepted = False
            return

        def expire() -> None:
            entry.fail(TimeoutError())
            batcher.cancel(entry)

        def answered(answer: asyncio.Future[Answer[None]]) -> None:
            timer.cancel()
            if not answer.exception():
                request.done = loop.time()

        timer = loop.call_later(self.slo, expire)
        entry.answer.add_done_callback(answered)


async def _until(when: float) -> None:
    loop = asyncio.get_running_loop()
    if when > loop.time():
        reached = loop.create_future()
        loop.call_at(when, functools.partial(reached.set_result, None))
        await reached
