"""Completes an answer with an error when the callback that should complete it raises.

The event loop only logs an exception of a callback, and the request that waits for its answer would
wait until its deadline. So code that completes an answer outside of the awaiting task runs within
`on_error`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class on_error:  # noqa: N801  # a statement: `with on_error(...):`
    """`with on_error(fail, *arguments):` calls `fail(*arguments, error)` if the block raises.

    The exception is not raised again: `fail` must report it. Exceptions that end a task or a
    process (CancelledError, KeyboardInterrupt, SystemExit) are raised again, after `fail` was
    called with a RuntimeError that has them as its cause.
    """

    __slots__ = ("_arguments", "_fail")

    def __init__(self, fail: Callable[..., object], *arguments: object) -> None:
        """
        Args:
            fail: Called with `arguments` and then the exception.
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
    """`error` itself if a future accepts it, otherwise a RuntimeError with `error` as its cause.

    Futures do not accept StopIteration, nor exceptions that are not subclasses of Exception.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__} in a callback")
    wrapped.__cause__ = error
    return wrapped
