"""Exit statuses of the service's processes."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    STOPPED = 0
    """The process stopped after SIGTERM or Ctrl-C and answered the requests in flight."""
    FAILED = 1
    """The model cannot be served, the engine did not stop in time, a process of the service failed
    repeatedly, or the supervisor of this process is gone."""
    BAD_SETTINGS = 2
    """A setting is invalid."""
    CANNOT_LISTEN = 3
    """A port is not available. Uvicorn uses the same status."""
    ENGINE_DEAD = 4
    """The engine did not return from a batch."""
    ENGINE_FAILING = 70
    """The engine failed on every recent batch. Only the engine process exits with this status, and
    the supervisor restarts it."""
    INTERRUPTED = 130
    """The process was ended by a second Ctrl-C. Shells report SIGINT with this status."""
