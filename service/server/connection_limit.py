"""Limits the number of open connections, and decides which connection a new connection replaces.

Terms
- Clients are counted by network: an IPv4 address, or the first 64 bits of an IPv6 address.
- A connection is busy from the end of a request to the beginning of the response. At all other
  times, the connection is waiting, because its client must act next.
- A connection makes progress when its request is complete, when a part of a response is sent, and
  after each `PROGRESS_BYTES` received. Fewer bytes are not progress, so a client cannot keep a
  connection open with a few bytes from time to time.

Guarantees
- At most `limit` connections are open. The limit is lower than the number of descriptors that the
  process may open.
- At the limit, a new connection replaces another connection. Of the waiting connections of the
  network with the most connections, the connection without progress for the longest time is
  replaced. Therefore, idle connections are replaced first, then slow connections, and uploads in
  progress last.
- If all connections of that network are busy and the network has more than 1/`CROWD` of all
  connections, its newest connection is replaced. If the network has fewer connections, waiting
  connections of other networks are replaced first.
- A busy connection is replaced only if its network, without this connection, still has more
  connections than the network of the new connection. Therefore, a client cannot keep other clients
  out. If one client, such as a proxy, has all connections and none of them is waiting, its new
  connections are rejected. Therefore, such a client does not interrupt its own requests.

If other parts of the process use up the descriptors, libuv accepts new connections and immediately
closes them.
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
"""Number of descriptors for everything except connections and decoder processes. Under a low limit
on descriptors, half of the limit is reserved instead."""
METRICS_CONNECTIONS = 64
"""Maximum number of open connections to the port for metrics."""
LOG_INTERVAL = 60.0
"""Minimum number of seconds between two warnings about the maximum number of connections."""
PROGRESS_BYTES = 4096
"""Number of received bytes that count as progress."""
CROWD = 16
"""A network with more than 1/`CROWD` of all connections loses busy connections, even if other
networks have waiting connections."""


class Replaceable(Protocol):
    """A connection that a new connection can replace."""

    network: str
    """Network of the client, as `rate_limit.network` returns it."""

    def make_room(self) -> None:
        """Close the connection immediately."""


class Connections(ServerState):
    """Uvicorn's record of open connections, with a maximum number."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: Maximum number of open connections.
        """
        super().__init__()
        self._limit = limit
        self._networks: dict[str, dict[Replaceable, None]] = {}
        """Connections of each network, the oldest first."""
        self.waiting = OrderedDict[Replaceable, None]()
        """Waiting connections, ordered by the time of their last progress, the earliest first.
        Connections add, move and remove themselves: methods for this would slow down every
        request."""
        self._logged_at: float | None = None
        self.peak = 0
        """Maximum number of open connections since memory was last returned to the system."""

    @property
    def held(self) -> int:
        """Number of open connections."""
        return len(self.connections)

    def admit(self, connection: Replaceable) -> bool:
        """Add a new connection as waiting. Returns False if the connection must be rejected."""
        self.peak = max(self.peak, min(len(self.connections) + 1, self._limit))
        if len(self.connections) >= self._limit:
            self._log_limit()
            replaced = self._replaced_by(connection.network)
            if replaced is None:
                return False
            self.remove(replaced)
            replaced.make_room()
        self.connections.add(connection)  # type: ignore[arg-type]  # not one of uvicorn's classes
        self._networks.setdefault(connection.network, {})[connection] = None
        self.waiting[connection] = None
        return True

    def remove(self, connection: Replaceable) -> None:
        """Remove a connection. Has no effect if the connection was removed or rejected before."""
        self.waiting.pop(connection, None)
        self.connections.discard(connection)
        connections = self._networks.get(connection.network, {})
        connections.pop(connection, None)
        if not connections:
            self._networks.pop(connection.network, None)

    def _replaced_by(self, network: str) -> Replaceable | None:
        """Return the connection that a new connection of `network` replaces.

        Returns None if the new connection must be rejected.
        """
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
        """Return the waiting connection with the earliest last progress.

        Only networks with at least `size` connections are considered. Returns None if these
        networks have no waiting connection.
        """
        for connection in self.waiting:
            if len(self._networks[connection.network]) >= size:
                return connection
        return None

    def _log_limit(self) -> None:
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at > LOG_INTERVAL:
            self._logged_at = now
            log.warning(
                "the maximum of %d connections is open: new connections replace connections of the "
                "clients with the most connections, or are rejected",
                self._limit,
            )


def usable_limit(settings: Settings, decoders: int) -> int:
    """Return the maximum number of HTTP connections. gRPC has a separate maximum of the same size.

    The result is `settings.max_connections`, or less if the process may not open enough
    descriptors. If necessary and allowed, this function raises the soft limit of the process on
    descriptors.

    Args:
        settings: Settings of the server.
        decoders: Number of descriptors that are reserved for the decoder processes.
    """
    requested = settings.max_connections
    # A gRPC connection needs three descriptors, because the server relays it.
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
        "at most %d connections instead of %d: this process may open only %d descriptors (ulimit "
        "-n, LimitNOFILE=). Raise that limit, or set SHOAL_MAX_CONNECTIONS=%d",
        *(possible, requested, soft, possible),
    )
    return possible


def raise_descriptor_limit(needed: int) -> int:
    """Raise the soft limit of the process on descriptors to `needed`.

    If the hard limit is lower than `needed`, the soft limit is raised to the hard limit. Returns
    the soft limit that is then in effect. Never lowers the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < needed:
        soft = needed if hard == unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
