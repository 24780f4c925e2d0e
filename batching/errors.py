"""Errors that a caller of the batcher receives instead of an answer.

This module does not depend on HTTP. If the deadline passes while an item waits or is being
processed, the caller receives the built-in TimeoutError.
"""

from __future__ import annotations


class Refused(Exception):
    """The item was rejected and is not processed."""

    def __init__(self, detail: str, retry_after: float) -> None:
        """
        Args:
            detail: Why the item was rejected.
            retry_after: Predicted number of seconds after which the same request would be accepted.
                The prediction ignores the timeout of the request. A request is never accepted if
                its timeout is shorter than the time that a batch of one item takes.
        """
        super().__init__(detail)
        self.retry_after = retry_after


class QueueFull(Refused):
    """The queue holds its maximum number of items."""


class DeadlineUnreachable(Refused):
    """The item cannot be answered before its deadline.

    This error is raised on arrival, or later if batches take longer than predicted.
    """


class Draining(Refused):
    """The batcher, or the whole server, is shutting down and accepts no new items."""

    def __init__(self, detail: str = "shutting down", retry_after: float = 1.0) -> None:
        """
        Args:
            detail: Why the item was rejected.
            retry_after: Seconds after which another server may accept the request.
        """
        super().__init__(detail, retry_after)


class EngineFailed(Exception):
    """The engine failed on this item. `__cause__` is the engine's exception."""


class EngineDead(EngineFailed):
    """The engine did not return from a batch, and the batcher no longer uses the engine.

    The item did not cause this error.
    """
