"""Lane: a thread that computes batches one at a time, with a replica of its own.

Everything that touches a network happens on the thread of its lane: loading, computing, reading
results, freeing. With a pool of threads MXNet leaks its workspaces, and a network that is called
from two threads deadlocks or computes wrong results (apache/mxnet issues 12756, 19159).
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
R = TypeVar("R")


class Lane:
    """Runs calls on its thread in the order in which they are made."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        """
        Args:
            thread: An executor with one thread.
        """
        self._thread = thread
        self.send: Callable[[Callable[[], None]], object] = thread.submit
        """Runs a call, which must not raise, without waiting for it."""

    async def call(self, call: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
        """Run `call(*arguments)` and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, call, *arguments)

    async def run_steps(self, steps: Generator[None, None, None]) -> None:
        """Run a generator to its end. Other calls run between its steps."""
        try:
            while await self.call(_step, steps):
                pass
        finally:
            await self.call(steps.close)


def _step(steps: Generator[None, None, None]) -> bool:
    """Run one step; False after the last."""
    try:
        return next(steps, steps) is None
    except BaseException as error:
        # Otherwise the traceback would keep the network, and another thread would free it.
        traceback.clear_frames(error.__traceback__)
        raise
