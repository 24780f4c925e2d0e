"""Connections: how many may be open, and which one makes room for a newcomer.

Promises
- There are at most `most`, and always fewer than the process may have descriptors.
- A connection waits unless it has a complete request whose answer has not begun. Where all places
  are taken, a newcomer takes that of the waiting connection whose last progress is longest ago:
  first idle and silent connections, then slow ones, and uploads in progress last. A newcomer is
  rejected only where no connection waits.
- Progress is a complete request, a part of an answer that was sent, or `PROGRESS_BYTES` received.
  Fewer bytes are no progress, so that a byte now and then does not keep a place.

Running out of descriptors all the same (something else in the process may take them) ends
nothing: libuv accepts and closes what it cannot keep.
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
TELL_EVERY = 60.0
"""Seconds between two lines in the log that say that there are too many."""


PROGRESS_BYTES = 4096
"""Bytes of requests after which a connection that waits has made progress."""


class Waiting(Protocol):
    """What is needed of a connection."""

    def make_room(self) -> None: ...


class Connections(ServerState):
    """uvicorn's record of what is open, with a bound."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._waiting = OrderedDict[Waiting, None]()  # by last progress, the longest ago first
        self._told_at: float | None = None
        self.peak = 0
        """Most that were open since `memory` was last given back."""

    @property
    def held(self) -> int:
        """Number of open connections."""
        return len(self.connections)

    def admit(self) -> bool:
        """Is there room for one more, if need be in place of another?"""
        self.peak = max(self.peak, min(len(self.connections) + 1, self._most))
        if len(self.connections) < self._most:
            return True
        self._tell()
        if not self._waiting:
            return False
        oldest, _ = self._waiting.popitem(last=False)
        self.connections.discard(oldest)
        oldest.make_room()
        return True

    def waits(self, connection: Waiting) -> None:
        """The server waits for its client from now on, if not before."""
        if connection in self.connections:  # not one that makes room and has not ended yet
            self._waiting[connection] = None

    def progresses(self, connection: Waiting) -> None:
        """If it waits, it is the last that makes room."""
        if connection in self._waiting:
            self._waiting.move_to_end(connection)

    def goes_on(self, connection: Waiting) -> None:
        """Its request is complete, or it is closed."""
        self._waiting.pop(connection, None)

    def _tell(self) -> None:
        now = time.monotonic()
        if self._told_at is None or now - self._told_at > TELL_EVERY:
            self._told_at = now
            log.warning(
                "%d connections are open, the most there may be: newcomers take the place of those "
                "that wait longest, or are refused",
                self._most,
            )


def bound(wanted: int, each: int = 1, decoders: int = 0) -> int:
    """How many connections there may be: `wanted`, or as many as there are descriptors for. Raises
    the process' own limit as far as that takes and the system allows.

    Args:
        wanted: Number of connections.
        each: Descriptors that one takes, of all kinds of connections together.
        decoders: Descriptors that are kept for the decoder processes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = each * wanted + OTHERS + decoders
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < enough:
        raised = enough if hard == unlimited else min(enough, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == unlimited or soft >= enough:
        return wanted
    free = max(soft - decoders, soft // 2)
    possible = max(free - OTHERS, free // 2) // each
    if possible >= wanted:
        return wanted
    log.warning(
        "at most %d connections instead of %d: this process may have only %d descriptors (ulimit "
        "-n, LimitNOFILE=). Raise that limit, or set SHOAL_MAX_CONNECTIONS=%d",
        *(possible, wanted, soft, possible),
    )
    return possible


def descriptors(settings: Settings) -> int:
    """Of a connection over HTTP and, where gRPC is served, one over gRPC: there may be as many of
    each, and gRPC's are relayed."""
    return 1 if settings.grpc_port is None else 4
