"""Runs a stage of the pipeline for all images of a request concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from service.http.problems import PROBLEMS

In = TypeVar("In")
Out = TypeVar("Out")
Stage = Callable[[In], Coroutine[Any, Any, Out]]


async def gather(stage: Stage[In, Out], items: Iterable[In], pause: bool = False) -> list[Out]:
    """Run `stage` for all items concurrently. Returns the results in the order of the items.

    The first exception cancels the other items, and is raised.

    Args:
        stage: The coroutine function to run.
        items: Its arguments, one for each call.
        pause: Whether the event loop may run other tasks between two items. Use it for stages that
            start with synchronous work.
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
        failure = error.with_traceback(None)  # it refers to a frame that refers to `error`
    first = _first_failure(failure, tasks)
    try:
        raise first
    finally:
        del failure, first, tasks  # the traceback refers to this frame


def _first_failure(failure: BaseException, tasks: list[asyncio.Task[Out]]) -> BaseException:
    """The exception of the item that failed first, with a note which one it is."""
    if not isinstance(failure, ExceptionGroup):
        return failure
    first: Exception = failure.exceptions[0]
    for number, task in enumerate(tasks):
        if len(tasks) > 1 and not task.cancelled() and task.exception() is first:
            first.add_note(f"This is image {number} of the request, counted from 0.")
    return first


def returning_errors(stage: Stage[In, Out]) -> Stage[In | Exception, Out | Exception]:
    """`stage`, which returns the exceptions that have a problem instead of raising them. An item
    that is an exception already is returned as it is."""

    async def run(item: In | Exception) -> Out | Exception:
        if isinstance(item, Exception):
            return item
        try:
            return await stage(item)
        except tuple(PROBLEMS) as error:
            return error

    return run
