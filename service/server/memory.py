"""Returns memory to the operating system after many connections or large uploads have ended.

Interrupted requests leave reference cycles, which stay in memory until Python's garbage collector
runs. In addition, glibc keeps the pages of freed memory. Without this module, the process kept
300 MiB after 1,024 concurrent connections.

The garbage collector runs for a short time only, because most connections have ended. `malloc_trim`
runs in a thread and takes about 0.2 s for 300 MiB. During this time, other threads that allocate
memory wait at most 20 ms. On systems without glibc, only garbage is collected.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.server.connection_limit import Connections
from service.upload.body import UploadMemory

CHECK_TICKS = 40
"""Number of ticks of uvicorn's server (one every 0.1 s) between two checks."""
MIN_CONNECTIONS = 16
"""Minimum number of closed connections after which memory is returned."""
MIN_BYTES = 64 * 2**20
"""Minimum number of freed bytes of uploads after which memory is returned."""
_trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return free memory to the operating system.

    Callers run this function in a thread. Only its garbage collection holds the interpreter lock.
    """
    gc.collect()
    if _trim is not None:
        _trim(0)


class Use(Protocol):
    """A consumer of memory. Its amount is a number of connections or a number of bytes."""

    @property
    def held(self) -> int:
        """Current amount of this consumer."""

    peak: int
    """Maximum of `held` since memory was last returned."""


class Memory:
    """Decides when to return memory to the operating system."""

    def __init__(self, connections: Sequence[Connections], uploads: UploadMemory) -> None:
        """
        Args:
            connections: Record of the open connections of each port.
            uploads: Record of the memory of all uploads.
        """
        self._uses: list[tuple[Use, int]] = [
            *((one, MIN_CONNECTIONS) for one in connections),
            (uploads, MIN_BYTES),
        ]

    def is_worth_giving_back(self) -> bool:
        """Whether the amount of a consumer has fallen enough since its peak.

        Two conditions apply: the amount is at most half of the peak, and it has fallen by at least
        the consumer's minimum. The peak of each such consumer is reset to its current amount.
        """
        fallen = [use for use, minimum in self._uses if _has_fallen(use, minimum)]
        for use in fallen:
            use.peak = use.held
        return bool(fallen)


def _has_fallen(use: Use, minimum: int) -> bool:
    return use.peak - use.held >= max(minimum, use.peak / 2)
