"""Gives memory back to the system after many connections have closed.

Requests that were interrupted leave objects that refer to each other, which wait for a collection
of garbage, and glibc keeps the pages of what was freed: after a flood of 1,024 connections some 300
MiB stayed with the process. The collection is short, since most connections are gone by then.
`malloc_trim` runs in a thread: for 300 MiB it takes some 0.2 s, and other threads that allocate
wait for at most 20 ms of that. On systems without glibc only garbage is collected.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

from service.connections import Connections

LOOK_TICKS = 40
"""Ticks of the server, 0.1 s each, between two looks."""
MANY = 16
"""Minimum number of connections that must have closed."""
_trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """To be called in a thread: the interpreter is held only while garbage is collected."""
    gc.collect()
    if _trim is not None:
        _trim(0)


class Memory:
    """Of `connections`, as looked at every `LOOK_TICKS`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def is_worth_giving_back(self) -> bool:
        """Whether half of the connections have closed that were open at most since the last time,
        and at least `MANY`."""
        count, peak = len(self._connections.connections), self._connections.peak
        if peak - count < max(MANY, peak / 2):
            return False
        self._connections.peak = count
        return True
