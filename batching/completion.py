"""Fails a request's future if the callback that should set its result raises an exception.

If a callback raises, the event loop only logs the exception. The request would then wait until its
deadline. Callbacks that set the result of a future must therefore run within `on_error`, unless
they run in the task that awaits the future.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class on_error:  # noqa: N801  # lowercase, because it reads as a statement
    """`with on_error(fail, *arguments):` calls `fail(*arguments, error)` if the block raises.

    The exception is suppressed, so `fail` must report it. Exceptions that end a task or a process
    (CancelledError, KeyboardInterrupt, SystemExit) are not suppressed. For such an exception,
    `fail` is called with a RuntimeError whose cause is the exception.
    """

    __slots__ = ("_arguments", "_fail")

    def __init__(self, fail: Callable[..., object], *arguments: object) -> None:
        """
        Args:
            fail: Function that is called with `arguments`, followed by the exception.
            arguments: First arguments of `fail`.
        """
        self._fail = fail
        self._arguments = arguments

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if error is None:
            return False
        suppressed = isinstance(error, Exception)
        self._fail(*self._arguments, raisable(error))
        return suppressed


def reject(answer: asyncio.Future[Any], error: Exception) -> None:
    """Complete `answer` with `error`, or log `error` if `answer` is already complete."""
    if answer.done():
        log.error("a callback failed after its request had ended", exc_info=error)
    else:
        answer.set_exception(error)


def raisable(error: BaseException) -> Exception:
    """Return `error` if a future accepts it, otherwise a RuntimeError whose cause is `error`.

    StopIteration is replaced because futures do not accept it. Exceptions that are not subclasses
    of Exception are replaced because they would end the task that awaits the future.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__} in a callback")
    wrapped.__cause__ = error
    return wrapped
