"""Limits the time until a body has arrived, and checks its rate of arrival at intervals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from batching import on_error
from service.errors import UploadTimeout


class Watched(Protocol):
    """The members of a lease that this module uses.

    A lease counts the memory of one body. `service.upload.body.Lease` is one implementation.
    """

    held: int
    max_seconds: float

    def begin(self, reject: Callable[[Exception], None]) -> None: ...
    def check(self) -> None: ...
    def reject(self, error: Exception) -> None: ...
    def end(self) -> None: ...


class CancelScope:
    """Context manager that can cancel its block with a reason.

    After `cancel(reason)`, the block ends and the context manager raises `reason`.
    """

    def __init__(self) -> None:
        self._reason: Exception | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If the task was also canceled for another reason, the task stays canceled.
        reason, self._reason = self._reason, None
        try:
            if reason is None or self._task.uncancel():
                return
            if kind in (None, asyncio.CancelledError):
                raise reason from None
        finally:
            del reason  # breaks the cycle between the exception and its traceback

    def cancel(self, reason: Exception) -> None:
        """Cancel the block. This method may be called at most once."""
        self._reason = reason
        self._task.cancel()


class Arrival(CancelScope):
    """Context manager for the block that reads a body.

    The block is canceled, and UploadTimeout is raised, if the body does not arrive within
    `lease.max_seconds`. The block is also canceled if the lease rejects the body, for example
    because the body arrives too slowly.
    """

    def __init__(self, lease: Watched, interval: float) -> None:
        """
        Args:
            lease: The lease of the body.
            interval: Seconds between two calls of `lease.check`, which checks the rate.
        """
        super().__init__()
        self._lease = lease
        self._interval = interval

    def __enter__(self) -> None:
        super().__enter__()
        self._lease.begin(self.cancel)
        self._loop = asyncio.get_running_loop()
        self._next_check = self._loop.time()
        self._end = self._next_check + self._lease.max_seconds
        self._schedule()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._timer.cancel()
        self._lease.end()
        super().__exit__(kind, *rest)

    def _schedule(self) -> None:
        self._next_check += self._interval
        if self._next_check < self._end:
            self._timer = self._loop.call_at(self._next_check, self._check)
        else:
            self._timer = self._loop.call_at(self._end, self._time_out)

    def _check(self) -> None:
        with on_error(self.cancel):
            self._lease.check()
            self._schedule()

    def _time_out(self) -> None:
        with on_error(self.cancel):
            self._lease.reject(
                UploadTimeout(
                    f"The upload did not arrive within {self._lease.max_seconds:g} seconds. Only "
                    f"{self._lease.held:,} bytes arrived. Send a smaller image, or use a faster "
                    "connection."
                )
            )
