"""Limits the number of open connections, and decides which one makes room for a new connection.

Guarantees
- At most `limit` connections are open, which is fewer than the process may have descriptors.
- A connection is waiting unless it has a complete request whose answer has not begun. Then it is
  busy.
- At the limit, a new connection replaces one of the client network with the most connections: the
  waiting one whose last progress is longest ago. So idle and silent connections are replaced first,
  then slow ones, and uploads in progress last.
- If that network has no waiting connection, but more than 1/`CROWD` of all connections, its newest
  busy one is replaced. If it has fewer, waiting connections of other networks are replaced first.
- A network never loses a connection to one that would have as many afterwards, unless the
  connection is waiting. So a client cannot keep others out, and a client that has all connections
  (NAT, a proxy) does not interrupt its own requests. Its new connections are rejected if none is
  waiting.
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
METRICS_CONNECTIONS = 64
"""Maximum number of connections to the port for metrics."""
LOG_INTERVAL = 60.0
"""Minimum number of seconds between two warnings that the limit is reached."""
PROGRESS_BYTES = 4096
"""Number of received bytes that count as progress."""
CROWD = 16
"""A network with more than this part of all connections makes room also where all of its
connections are busy and others are waiting."""


class Replaceable(Protocol):
    """A connection that can make room for another."""

    network: str
    """Identifies the client (`rate_limit.network`)."""

    def make_room(self) -> None:
        """Close immediately."""


class Connections(ServerState):
    """Uvicorn's record of open connections, with a limit."""

    def __init__(self, limit: int) -> None:
        """`limit`: maximum number of open connections."""
        super().__init__()
        self._limit = limit
        self._networks: dict[str, dict[Replaceable, None]] = {}
        """The connections of each network, the oldest first."""
        self.waiting = OrderedDict[Replaceable, None]()
        """Waiting connections, the one whose last progress is longest ago first. Connections that
        are not waiting may be replaced, too. Each connection adds, moves and removes itself, since
        a call for each change would slow down every request."""
        self._logged_at: float | None = None
        self.peak = 0
        """Maximum number of open connections since memory was last returned to the system."""

    @property
    def held(self) -> int:
        """Number of open connections."""
        return len(self.connections)

    def admit(self, connection: Replaceable) -> bool:
        """Add a new connection, which is waiting. Returns False when it must be rejected."""
        self.peak = max(self.peak, min(len(self.connections) + 1, self._limit))
        if len(self.connections) >= self._limit:
            self._log_limit()
            replaced = self._replaced_by(connection.network)
            if replaced is None:
                return False
            self.remove(replaced)
            replaced.make_room()
        self.connections.add(connection)  # type: ignore[arg-type]  # not a class of Uvicorn's
        self._networks.setdefault(connection.network, {})[connection] = None
        self.waiting[connection] = None
        return True

    def remove(self, connection: Replaceable) -> None:
        """Remove a connection. No effect if it was removed or rejected before."""
        self.waiting.pop(connection, None)
        self.connections.discard(connection)
        connections = self._networks.get(connection.network, {})
        connections.pop(connection, None)
        if not connections:
            self._networks.pop(connection.network, None)

    def _replaced_by(self, network: str) -> Replaceable | None:
        """The connection that a new one of `network` replaces. None: it must be rejected."""
        own = len(self._networks.get(network, ()))
        most = max(map(len, self._networks.values()), default=0)
        may_replace_busy = own + 1 < most
        found = self._longest_waiting(most)
        if found is None and not (may_replace_busy and most * CROWD > self._limit):
            found = self._longest_waiting(own)
        if found is None and may_replace_busy:
            largest = next(ones for ones in self._networks.values() if len(ones) == most)
            found = next(reversed(largest))
        return found

    def _longest_waiting(self, size: int) -> Replaceable | None:
        """The waiting connection whose last progress is longest ago, of networks with at least
        `size` connections."""
        for connection in self.waiting:
            if len(self._networks[connection.network]) >= size:
                return connection
        return None

    def _log_limit(self) -> None:
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at > LOG_INTERVAL:
            self._logged_at = now
            log.warning(
                "the maximum of %d connections is open: new connections replace those of the "
                "clients with the most connections, or are rejected",
                self._limit,
            )


def usable_limit(settings: Settings, decoders: int) -> int:
    """The maximum number of HTTP connections, which is also that of gRPC connections.

    It is `max_connections`, or fewer if the process may not have enough descriptors. Raises the
    soft limit of the process on descriptors if necessary and allowed.

    Args:
        settings: The settings of the server.
        decoders: Number of descriptors that are kept for the decoder processes.
    """
    requested = settings.max_connections
    # A gRPC connection takes three descriptors, since it is relayed.
    each = 1 if settings.grpc_port is None else 4
    others = OTHER_DESCRIPTORS + (0 if settings.metrics_port is None else METRICS_CONNECTIONS)
    needed = each * requested + others + decoders
    soft = raise_descriptor_limit(needed)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return requested
    free = max(soft - decoders, soft // 2)
    possible = max(free - others, free // 2) // each
    if possible >= requested:
        return requested
    log.warning(
        "at most %d connections instead of %d: this process may have only %d descriptors (ulimit "
        "-n, LimitNOFILE=). Raise that limit, or set SHOAL_MAX_CONNECTIONS=%d",
        *(possible, requested, soft, possible),
    )
    return possible


def raise_descriptor_limit(needed: int) -> int:
    """Raise the soft limit of the process on descriptors to `needed`, as far as that is allowed.
    Returns the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        soft = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
