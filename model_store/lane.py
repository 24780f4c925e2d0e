"""Lane: a thread that computes batches one at a time, with a replica of its own.

Everything that touches a network happens on the thread of its lane: loading, computing, reading
results, freeing. With a pool of threads MXNet leaks its workspaces, and a network that is called
from two threads deadlocks or computes wrong results (apache/mxnet issues 12756, 19159).
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from model_store.batch import Inputs, Rows
from model_store.replica import Replica

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

    def send(self, call: Callable[[], None]) -> None:
        """Run `call`, which must not raise, without waiting for it."""
        self._thread.submit(call)


def _step(steps: Generator[None, None, None]) -> bool:
    """Run one step; False after the last."""
    try:
        return next(steps, steps) is None
    except BaseException as error:
        # Otherwise the traceback would keep the network, and another thread would free it.
        traceback.clear_frames(error.__traceback__)
        raise


@dataclass(slots=True, eq=False)
class HandedBatch:
    """A batch that was handed to the engine, and its caller's future."""

    replicas: Sequence[Replica]
    """Those of the version that computes it, one for each lane."""
    inputs: Inputs
    answer: asyncio.Future[tuple[Rows, float]]
    """The logits, and when they were computed by `time.monotonic`."""

    def settle(self, result: tuple[Rows, float] | BaseException) -> None:
        """Complete the answer. Called on the event loop.

        A future does not accept StopIteration, and an exception such as SystemExit or
        CancelledError would end the caller's task. Both become a RuntimeError.
        """
        if self.answer.done():
            return  # the caller has canceled
        if not isinstance(result, BaseException):
            self.answer.set_result(result)
        elif isinstance(result, Exception) and not isinstance(result, StopIteration):
            self.answer.set_exception(result)
        else:
            error = RuntimeError(f"{type(result).__name__} in the engine")
            error.__cause__ = result
            self.answer.set_exception(error)
