"""Runs a stage of the request pipeline for all images of a request concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from service.http.problems import PROBLEMS

In = TypeVar("In")
Out = TypeVar("Out")
Stage = Callable[[In], Coroutine[Any, Any, Out]]
"""A coroutine function that processes one item, such as `Pipeline.decode`."""


async def gather(stage: Stage[In, Out], items: Iterable[In], pause: bool = False) -> list[Out]:
    """Run `stage` for all items concurrently. Returns the results in the order of the items.

    If the stage raises an exception for an item, the other items are canceled and the exception is
    raised. If there are several items, the exception gets a note with the position of its item.

    Args:
        stage: The coroutine function to run.
        items: The argument of each call.
        pause: Whether to let the event loop run other tasks before the next item is started. A
            pause is useful if the stage begins with synchronous work.
    """
    tasks: list[asyncio.Task[Out]] = []
    try:
        async with asyncio.TaskGroup() as group:
            for item in items:
                tasks.append(group.create_task(stage(item)))
                if pause:
                    await asyncio.sleep(0)
        return [task.result() for task in tasks]
    except (ExceptionGroup, asyncio.CancelledError) as error:
        # The traceback refers to this frame, which refers to `error`. This reference cycle would
        # keep the images in memory until a garbage collection.
        failure = error.with_traceback(None)
    first = _first_failure(failure, tasks)
    try:
        raise first
    finally:
        del failure, first, tasks  # otherwise, the new traceback would form another cycle


def _first_failure(failure: BaseException, tasks: list[asyncio.Task[Out]]) -> BaseException:
    """Return the exception of the item that failed first. Adds a note with the item's position.

    A cancellation is returned unchanged.
    """
    if not isinstance(failure, ExceptionGroup):
        return failure
    first: Exception = failure.exceptions[0]
    for number, task in enumerate(tasks):
        if len(tasks) > 1 and not task.cancelled() and task.exception() is first:
            first.add_note(f"This is image {number} of the request, counted from 0.")
    return first


def returning_errors(stage: Stage[In, Out]) -> Stage[In | Exception, Out | Exception]:
    """Return a stage that calls `stage` and returns expected exceptions instead of raising them.

    Expected exceptions are the exceptions in `http.problems.PROBLEMS`. If an item is an exception
    of an earlier stage, the item is returned unchanged, and `stage` is not called.
    """

    async def run(item: In | Exception) -> Out | Exception:
        if isinstance(item, Exception):
            return item
        try:
            return await stage(item)
        except tuple(PROBLEMS) as error:
            return error

    return run
