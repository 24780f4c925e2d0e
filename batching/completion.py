"""Completion: a callback that raises still completes the answer that it is responsible for.

An exception in a callback goes to the event loop's handler, which logs it. The request that waits
for that callback would wait until its deadline. Code that completes an answer outside of the
awaiting task therefore runs within `on_error`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class on_error:  # noqa: N801  # a statement: `with on_error(...):`
    """`with on_error(fail, *arguments):` calls `fail(*arguments, error)` where the block raises.

    The exception ends there: `fail` has reported it. Exceptions that end a task or a process
    (CancelledError, KeyboardInterrupt, SystemExit) continue after `fail` was called with a
    RuntimeError that has them as its cause.
    """

    __slots__ = ("_arguments", "_fail")

    def __init__(self, fail: Callable[..., object], *arguments: object) -> None:
        self._fail = fail
        self._arguments = arguments

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if error is None:
            return False
        ordinary = isinstance(error, Exception)
        self._fail(*self._arguments, raisable(error))
        return ordinary


def reject(answer: asyncio.Future[Any], error: Exception) -> None:
    """Complete `answer` with `error`. Where it is complete already, log `error`."""
    if answer.done():
        log.error("a callback failed after its request had ended", exc_info=error)
    else:
        answer.set_exception(error)


def raisable(error: BaseException) -> Exception:
    """`error`, or a RuntimeError caused by it where a future would not take or keep it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__} in a callback")
    wrapped.__cause__ = error
    return wrapped
