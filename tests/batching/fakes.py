"""Fakes: an engine on a virtual clock that records its batches, and helpers for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from heapq import heapreplace
from typing import Any

from batching import Batcher, BatchReport, LatencyTable
from batching.latency import NORMAL
from batching.policy import Policy

Result = int | Exception


class FakeEngine:
    """Doubles numbers. A batch of n takes `seconds(n)` in the lane that is free first.

    A batch with an item in `poison` raises; an item in `bad` has an exception as its result.
    `memory` is the largest batch that fits. If `broken`, every batch raises.
    """

    def __init__(self, seconds: Callable[[int], float] = lambda size: 1.0, lanes: int = 1) -> None:
        self.seconds = seconds
        self.batches: list[list[int]] = []
        self.began: list[float] = []
        self.poison: set[int] = set()
        self.bad: set[int] = set()
        self.memory = 1_000_000
        self.broken = False
        self._free_at = [0.0] * lanes

    async def infer(self, items: Sequence[int]) -> list[Result]:
        loop = asyncio.get_running_loop()
        began = max(loop.time(), self._free_at[0])
        ends = began + self.seconds(len(items))
        heapreplace(self._free_at, ends)
        self.batches.append(list(items))
        self.began.append(began)
        await asyncio.sleep(ends - loop.time())
        if len(items) > self.memory:
            raise MemoryError
        if self.broken or self.poison.intersection(items):
            raise RuntimeError("the engine fails")
        return [ValueError(item) if item in self.bad else 2 * item for item in items]


def table(
    seconds: Callable[[int], float] = lambda size: 1.0,
    buckets: Sequence[int] = (1, 2, 4, 8),
    margin: float = 0.0,
) -> LatencyTable:
    """A table that predicts `seconds(bucket)`.

    Its warm-up runs differ, so that the policy's margin starts at `margin`, or at its minimum if
    that is larger.
    """
    distance = margin / (3 * NORMAL)
    runs = (1 - distance, 1.0, 1 + distance)
    return LatencyTable({bucket: [seconds(bucket) * run for run in runs] for bucket in buckets})


def policy(
    seconds: Callable[[int], float] = lambda size: 1.0,
    buckets: Sequence[int] = (1, 2, 4, 8),
    margin: float = 0.1,
) -> Policy:
    """A policy for one lane that knows such a table."""
    return Policy(table(seconds, buckets, margin), max_batch_size=max(buckets))


def steps(size: int) -> float:
    """Seconds on a device on which a batch takes 0.5 s and each item 0.5 s more."""
    return 0.5 + 0.5 * size


def batcher(engine: FakeEngine, **settings: Any) -> Batcher[int, int]:
    """A batcher on the loop's clock, by default with 8 items in a batch and 100 in the queue."""
    defaults: dict[str, Any] = {
        "latency": table(engine.seconds),
        "max_batch_size": 8,
        "max_queue_size": 100,
        "clock": asyncio.get_running_loop().time,
    }
    return Batcher(engine.infer, **{**defaults, **settings})


def task(batcher: Batcher[int, int], item: int, timeout: float = 100.0) -> asyncio.Task[Any]:
    """A task that submits `item`."""
    return asyncio.get_running_loop().create_task(batcher.submit(item, timeout))


async def outcomes(*tasks: asyncio.Task[object]) -> list[object]:
    """Waits for all tasks and returns their results and exceptions, in order."""
    return await asyncio.gather(*tasks, return_exceptions=True)


def now() -> float:
    """Seconds on the clock of the running loop."""
    return asyncio.get_running_loop().time()


class Reports(list[BatchReport]):
    """An `on_batch` that records all reports."""

    __call__ = list.append
