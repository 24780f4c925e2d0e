"""Returns memory to the system after many connections, or large uploads, have ended.

Interrupted requests leave objects that refer to each other until garbage is collected, and glibc
keeps the pages of freed memory: after 1,024 connections at the same time, the process kept 300 MiB.
Garbage collection is short, because most connections are gone. `malloc_trim` runs in a thread: for
300 MiB it takes about 0.2 s, of which other threads that allocate memory wait at most 20 ms. On
systems without glibc, only garbage is collected.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.server.connection_limit import Connections
from service.upload.body import UploadMemory

CHECK_TICKS = 40
"""Number of ticks of the server, 0.1 s each, between two checks."""
MIN_CONNECTIONS = 16
"""Number of connections that must have closed before memory is returned."""
MIN_BYTES = 64 * 2**20
"""Number of bytes of uploads that must have been freed before memory is returned."""
_trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return free memory to the system. Call in a thread: only the collection of garbage holds the
    interpreter lock."""
    gc.collect()
    if _trim is not None:
        _trim(0)


class Use(Protocol):
    """A use of memory that is counted, in connections or bytes."""

    @property
    def held(self) -> int:
        """Current amount."""

    peak: int
    """Maximum of `held` since memory was last returned."""


class Memory:
    """Decides when returning memory is worthwhile."""

    def __init__(self, connections: Sequence[Connections], uploads: UploadMemory) -> None:
        """
        Args:
            connections: The connections of each port.
            uploads: The uploads of all ports.
        """
        self._uses: list[tuple[Use, int]] = [
            *((one, MIN_CONNECTIONS) for one in connections),
            (uploads, MIN_BYTES),
        ]

    def is_worth_giving_back(self) -> bool:
        """Whether a use has fallen to half of its peak or less, by at least its minimum."""
        fallen = [use for use, minimum in self._uses if _has_fallen(use, minimum)]
        for use in fallen:
            use.peak = use.held
        return bool(fallen)


def _has_fallen(use: Use, minimum: int) -> bool:
    return use.peak - use.held >= max(minimum, use.peak / 2)
