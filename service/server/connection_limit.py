"""Limits the number of open connections, and decides which one makes room for a new one.

Promises
- There are at most as many as configured, and always fewer than the process may have descriptors.
- A connection waits unless it has a complete request whose answer has not begun. It is busy then.
- Where all places are taken, a new connection takes that of the client network that has most of
  them: of its waiting connections the one whose last progress is longest ago. So idle and silent
  connections make room first, then slow ones, and uploads in progress last.
- A network that has more than a `CROWD`th of all places gives one of a busy connection where none
  of its connections waits. A smaller one does so only where no other network has a waiting
  connection. Its newest makes room.
- A connection never takes the place of a busy one of its own network, nor that of a network that
  would then have fewer connections than its own. So a client cannot keep others out, and one that
  has all places (NAT, a proxy) does not interrupt its own requests. It is rejected where no
  connection waits.
- Progress is a complete request, a part of an answer that was sent, or `PROGRESS_BYTES` received.
  Fewer bytes are no progress, so that a byte now and then does not keep a place.

Running out of descriptors all the same (something else in the process may take them) ends
nothing: libuv accepts and closes connections that it cannot keep.
"""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from typing import Protocol

from uvicorn.server import ServerState

from service.settings import Settings
from service.telemetry.logs import log

OTHERS = 64
"""Descriptors for everything that is no connection; of a few, half."""
SIDE_CONNECTIONS = 64
"""Maximum number of connections to the port for metrics."""
TELL_EVERY = 60.0
"""Seconds between two lines in the log that say that there are too many."""
PROGRESS_BYTES = 4096
"""Bytes of requests after which a connection that waits has made progress."""
CROWD = 16


class Connection(Protocol):
    """The methods and attributes of a connection that are used here."""

    network: str
    """Identifies the client (`rate_limit.network`)."""

    def make_room(self) -> None:
        """Close the connection now. Its place is taken already."""


class Connections(ServerState):
    """uvicorn's record of open connections, with a limit."""

    def __init__(self, most: int) -> None:
        """`most`: maximum number of connections."""
        super().__init__()
        self._most = most
        self._networks: dict[str, dict[Connection, None]] = {}
        """Connections that have a place by their network, the oldest first."""
        self.waiting = OrderedDict[Connection, None]()
        """Those that wait, the one whose last progress is longest ago first. They keep this up to
        date themselves: a call for each change would cost every request."""
        self._told_at: float | None = None
        self.peak = 0
        """Maximum number of open connections since `memory` last gave memory back."""

    @property
    def held(self) -> int:
        """Number of open connections."""
        return len(self.connections)

    def admit(self, newcomer: Connection) -> bool:
        """Give a new connection a place, if need be that of another one. It waits at first.
        Returns False where there is no place."""
        self.peak = max(self.peak, min(len(self.connections) + 1, self._most))
        if len(self.connections) >= self._most:
            self._tell()
            other = self._makes_room(newcomer.network)
            if other is None:
                return False
            self.remove(other)
            other.make_room()
        self.connections.add(newcomer)  # type: ignore[arg-type]  # uvicorn's are of its own classes
        self._networks.setdefault(newcomer.network, {})[newcomer] = None
        self.waiting[newcomer] = None
        return True

    def remove(self, connection: Connection) -> None:
        """Take its place away from a connection, if it has one."""
        self.waiting.pop(connection, None)
        self.connections.discard(connection)
        others = self._networks.get(connection.network, {})
        others.pop(connection, None)
        if not others:
            self._networks.pop(connection.network, None)

    def _makes_room(self, network: str) -> Connection | None:
        """The connection whose place a new one of `network` takes."""
        own = len(self._networks.get(network, ()))
        most = max(map(len, self._networks.values()), default=0)
        is_fair = own + 1 < most
        found = self._longest_waiting(most)
        if found is None and not (is_fair and most * CROWD > self._most):
            found = self._longest_waiting(own)
        if found is None and is_fair:
            largest = next(one for one in self._networks.values() if len(one) == most)
            found = next(reversed(largest))
        return found

    def _longest_waiting(self, least: int) -> Connection | None:
        """Of networks with at least `least` connections, the one that waits longest."""
        for connection in self.waiting:
            if len(self._networks[connection.network]) >= least:
                return connection
        return None

    def _tell(self) -> None:
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > TELL_EVERY:
            self._told_at = now
            log.warning(
                "%d connections are open, the maximum: new ones take the place of those that wait "
                "longest, of the client that has most, or are rejected",
                self._most,
            )


def bound(settings: Settings) -> int:
    """Maximum number of connections over HTTP, and of those over gRPC: `SHOAL_MAX_CONNECTIONS`, or
    as many as there are descriptors for. Raises the process' own limit as far as needed and
    allowed."""
    wanted = settings.max_connections
    # One over gRPC is relayed: it takes three. There may be as many as over HTTP.
    each = 1 if settings.grpc_port is None else 4
    spare = OTHERS + (0 if settings.metrics_port is None else SIDE_CONNECTIONS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = each * wanted + spare
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < enough:
        raised = enough if hard == unlimited else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == unlimited or soft >= enough:
        return wanted
    possible = max(soft - spare, soft // 2) // each
    if possible >= wanted:
        return wanted
    log.warning(
        "at most %d connections instead of %d: this process may have only %d descriptors (ulimit "
        "-n, LimitNOFILE=). Raise that limit, or set SHOAL_MAX_CONNECTIONS=%d",
        *(possible, wanted, soft, possible),
    )
    return possible
