"""Exit statuses of the service's processes."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    STOPPED = 0
    """The process stopped after SIGTERM or Ctrl-C. Before the end, the process finished the
    requests in progress."""
    FAILED = 1
    """The model cannot be served, the engine did not stop in time, gRPC's server has ended by
    itself, a process of the service failed repeatedly, or the supervisor has ended. The supervisor
    is the process that starts the other processes."""
    BAD_SETTINGS = 2
    """A setting is invalid."""
    CANNOT_LISTEN = 3
    """A port is not available. Uvicorn exits with the same status in this case."""
    ENGINE_DEAD = 4
    """The engine, which runs the batches, did not finish a batch in time."""
    ENGINE_FAILING = 70
    """The engine failed on every recent batch. Only the engine process exits with this status, and
    the supervisor restarts it."""
    INTERRUPTED = 130
    """A second Ctrl-C ended the process. Shells report SIGINT with the same status."""
