"""What can happen to an item instead of an answer. Small, named for what happened, without HTTP.

A deadline that passes while an item waits or is computed is the built-in TimeoutError.
"""

from __future__ import annotations


class Refused(Exception):
    """Not computed. As far as the batcher can tell, the same request would be welcome `retry_after`
    seconds from now, unless it has less time than the engine takes for one item."""

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QueueFull(Refused):
    """As many items wait as are allowed to."""


class DeadlineUnreachable(Refused):
    """The answer would come too late: known on arrival, or later, when batches took longer."""


class Draining(Refused):
    """The batcher, or the whole server, is shutting down and accepts no more requests."""

    def __init__(self, detail: str = "shutting down", retry_after: float = 1.0) -> None:
        """
        Args:
            detail: What happened.
            retry_after: Seconds after which another server may accept the request.
        """
        super().__init__(detail, retry_after)


class EngineFailed(Exception):
    """The engine failed on this item; `__cause__` says how."""


class EngineDead(EngineFailed):
    """The engine did not come back from a batch and was given up; the item is not at fault."""
