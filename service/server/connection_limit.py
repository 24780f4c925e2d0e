"""Limits the number of open connections, and decides which one makes room for a new connection.

Guarantees
- At most `limit` connections are open, which is fewer than the process may have descriptors.
- A connection is waiting unless it has a complete request whose answer has not begun. At the limit,
  a new connection replaces the waiting one whose last progress is longest ago: idle and silent
  connections first, then slow ones, and uploads in progress last. A new connection is rejected only
  when no connection is waiting.
- Progress is a complete request, a part of an answer that was sent, or `PROGRESS_BYTES` received.
  Fewer bytes are not progress, so a byte now and then does not keep a connection open.

If the process runs out of descriptors all the same, because something else uses them, libuv accepts
and closes new connections.
"""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from typing import Protocol

from uvicorn.server import ServerState

from service.settings import Settings
from service.telemetry.logs import log

OTHER_DESCRIPTORS = 64
"""Descriptors for everything except connections. Under a low limit, half of the limit."""
LOG_INTERVAL = 60.0
"""Minimum number of seconds between two warnings that the limit is reached."""
PROGRESS_BYTES = 4096
"""Number of received bytes that count as progress."""


class Replaceable(Protocol):
    """A connection that can make room for another."""

    def make_room(self) -> None:
        """Close immediately."""


class Connections(ServerState):
    """Uvicorn's record of open connections, with a limit."""

    def __init__(self, limit: int) -> None:
        """`limit`: maximum number of open connections."""
        super().__init__()
        self._limit = limit
        # Ordered by last progress, the oldest first.
        self._waiting = OrderedDict[Replaceable, None]()
        self._logged_at: float | None = None
        self.peak = 0
        """Maximum number of open connections since memory was last returned to the system."""

    @property
    def held(self) -> int:
        """Number of open connections."""
        return len(self.connections)

    def admit(self) -> bool:
        """Make room for one more connection. Returns False when it must be rejected."""
        self.peak = max(self.peak, min(len(self.connections) + 1, self._limit))
        if len(self.connections) < self._limit:
            return True
        self._log_limit()
        if not self._waiting:
            return False
        oldest, _ = self._waiting.popitem(last=False)
        self.connections.discard(oldest)
        oldest.make_room()
        return True

    def mark_waiting(self, connection: Replaceable) -> None:
        """The connection waits for its client. From now on it may be replaced."""
        if connection in self.connections:  # not when it has been replaced already
            self._waiting[connection] = None

    def mark_progress(self, connection: Replaceable) -> None:
        """The connection has made progress. It is now the last one to be replaced."""
        if connection in self._waiting:
            self._waiting.move_to_end(connection)

    def mark_busy(self, connection: Replaceable) -> None:
        """The connection has a complete request, or is closed. It is not replaced."""
        self._waiting.pop(connection, None)

    def _log_limit(self) -> None:
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at > LOG_INTERVAL:
            self._logged_at = now
            log.warning(
                "the maximum of %d connections is open: new connections replace those that have "
                "waited longest, or are rejected",
                self._limit,
            )


def usable_limit(requested: int, descriptors: int = 1, decoders: int = 0) -> int:
    """The number of connections that the process has descriptors for, at most `requested`.

    Raises the soft limit of the process on descriptors if necessary and allowed.

    Args:
        requested: Maximum number of connections.
        descriptors: Number of descriptors per connection.
        decoders: Number of descriptors that are kept for the decoder processes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors * requested + OTHER_DESCRIPTORS + decoders
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        raised = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == unlimited or soft >= needed:
        return requested
    free = max(soft - decoders, soft // 2)
    possible = max(free - OTHER_DESCRIPTORS, free // 2) // descriptors
    if possible >= requested:
        return requested
    log.warning(
        "at most %d connections instead of %d: this process may have only %d descriptors (ulimit "
        "-n, LimitNOFILE=). Raise that limit, or set SHOAL_MAX_CONNECTIONS=%d",
        *(possible, requested, soft, possible),
    )
    return possible


def descriptors_per_connection(settings: Settings) -> int:
    """Number of descriptors for one HTTP connection and, with gRPC, one gRPC connection, which
    takes three. There may be as many connections of either kind."""
    return 1 if settings.grpc_port is None else 4
