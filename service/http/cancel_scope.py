"""What is awaited, ended from outside for a reason."""

from __future__ import annotations

import asyncio


class CancelScope:
    """What is awaited within is cancelled by `interrupt`, and its reason raised in its place."""

    def __init__(self) -> None:
        self._reason: Exception | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A server that gives up on us cancels too: such a cancellation goes on its way.
        reason, self._reason = self._reason, None
        try:
            if reason is None or self._task.uncancel():
                return
            if kind in (None, asyncio.CancelledError):
                raise reason from None
        finally:
            del reason  # or it and its traceback would keep each other

    def interrupt(self, reason: Exception) -> None:
        """Once at most."""
        self._reason = reason
        self._task.cancel()
