"""Gives memory back to the system after many connections, or large uploads, have ended.

Requests that were interrupted leave objects that refer to each other, which wait for a collection
of garbage, and glibc keeps the pages of what was freed: after a flood of 1,024 connections some 300
MiB stayed with the process. The collection is short, since most connections are gone by then.
`malloc_trim` runs in a thread: for 300 MiB it takes some 0.2 s, and other threads that allocate
wait for at most 20 ms of that. On systems without glibc only garbage is collected.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.server.connection_limit import Connections
from service.upload.body import UploadMemory

LOOK_TICKS = 40
"""Ticks of the server, 0.1 s each, between two looks."""
MANY = 16
"""Minimum number of connections that must have closed."""
MANY_BYTES = 64 * 2**20
"""Minimum number of bytes of uploads that must have been freed."""
_trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """To be called in a thread: the interpreter is held only while garbage is collected."""
    gc.collect()
    if _trim is not None:
        _trim(0)


class Use(Protocol):
    """Something that takes memory while it lasts."""

    @property
    def held(self) -> int: ...

    peak: int
    """Largest `held` since memory was last given back."""


class Memory:
    """The memory of connections and uploads, as looked at every `LOOK_TICKS`."""

    def __init__(self, connections: Sequence[Connections], uploads: UploadMemory) -> None:
        """`connections`: those of each port; `uploads`: those of all ports together."""
        self._uses: list[tuple[Use, int]] = [(one, MANY) for one in connections] + [
            (uploads, MANY_BYTES)
        ]

    def is_worth_giving_back(self) -> bool:
        """Whether one use has fallen to half of its peak, by at least its minimum."""
        fallen = [use for use, least in self._uses if _has_fallen(use, least)]
        for use in fallen:
            use.peak = use.held
        return bool(fallen)


def _has_fallen(use: Use, least: int) -> bool:
    return use.peak - use.held >= max(least, use.peak / 2)
