"""Lane: a thread that runs one batch at a time.

Each lane has its own replica, which is a loaded copy of the network. All work on a replica runs on
the thread of its lane: loading, computing, reading results and freeing. If several threads call the
same network, MXNet deadlocks or computes wrong results. If calls move between the threads of a
pool, MXNet leaks memory (apache/mxnet issues 12756 and 19159).
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
    """Runs calls on its thread, in the order of the calls."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        """
        Args:
            thread: An executor with exactly one thread.
        """
        self._thread = thread
        self.send: Callable[[Callable[[], None]], object] = thread.submit
        """Function that schedules another function on the thread and returns immediately. The
        scheduled function must not raise."""

    async def call(self, call: Callable[[*Arguments], R], *arguments: *Arguments) -> R:
        """Run `call(*arguments)` on the thread, and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, call, *arguments)

    async def run_steps(self, steps: Generator[None, None, None]) -> None:
        """Run all steps of a generator on the thread. Other calls may run between two steps."""
        try:
            while await self.call(_step, steps):
                pass
        finally:
            await self.call(steps.close)


def _step(steps: Generator[None, None, None]) -> bool:
    """Run the next step of a generator. Returns False if there is no further step."""
    try:
        return next(steps, steps) is None
    except BaseException as error:
        # The traceback refers to the network. The references are removed, because the network must
        # be freed on this thread.
        traceback.clear_frames(error.__traceback__)
        raise
