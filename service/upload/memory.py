"""Budget: the memory that uploads may take together, and which of them are too slow to have it.

Promises
- All uploads hold at most `most` bytes at the same moment; who would exceed it is refused.
- Those that have been arriving for longer than `CHECK_INTERVAL` hold at most half of that. When
  they would hold more, the one that arrives most slowly is ended: however many slow clients there
  are, half of the memory is for the others, and the slower ones make room for the faster.
- After `GRACE` an upload that arrives at less than `MIN_RATE` is ended, too.

What an upload holds counts as it arrives, not as its head declares it. How fast it arrives is its
bytes a second, the last `CHECK_INTERVAL` counting as much as all before: who begins fast and then
stalls is slow soon. Pure but for the one call that ends an upload.
"""

from __future__ import annotations

from collections.abc import Callable

from batching import QueueFull
from service.errors import UploadTimeout

CHECK_INTERVAL = 2.0
"""Seconds between two looks at an upload that is arriving."""
GRACE = 3
"""Looks after which it must be fast enough."""
MIN_RATE = 1024
"""Bytes a second."""


class UploadMemory:
    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        """Bytes, by all uploads."""
        self.peak = 0
        """Largest `held` since `memory` was last given back."""
        self._slow = set[Lease]()
        self._held_slowly = 0

    def holding(self) -> Lease:
        """Within, the bytes of one upload count."""
        return Lease(self)

    def add(self, share: Lease, count: int) -> None:
        if self.held + count > self.most:
            raise QueueFull("uploads take all the memory that they may", retry_after=1)
        self.held += count
        self.peak = max(self.peak, self.held)
        share.held += count
        if share in self._slow:
            self._held_slowly += count
            self._make_room()

    def is_slow(self, share: Lease) -> None:
        if share not in self._slow:
            self._slow.add(share)
            self._held_slowly += share.held
            self._make_room()

    def is_not_slow(self, share: Lease) -> None:
        if share in self._slow:
            self._slow.remove(share)
            self._held_slowly -= share.held

    def _make_room(self) -> None:
        while self._held_slowly > self.most / 2:
            slowest = min(self._slow, key=lambda share: share.rate)
            slowest.end(QueueFull("slow uploads take all the memory that they may", retry_after=1))


class Lease:
    """Of one upload, which counts until `release`, or within."""

    def __init__(self, budget: UploadMemory) -> None:
        self.held = 0
        """Bytes."""
        self.rate = 0.0
        """Bytes a second, lately."""
        self._budget = budget
        self._looks = 0
        self._seen = 0
        self._stop: Callable[[Exception], None] | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Its bytes are kept no longer."""
        self._budget.held -= self.held
        self.held = 0

    def add(self, count: int) -> None:
        """So many bytes more are kept. Raises QueueFull instead of going beyond the budget."""
        self._budget.add(self, count)

    def begins(self, stop: Callable[[Exception], None]) -> None:
        """It arrives from now on. Should it be too slow, `stop` is told why, once."""
        self._stop = stop

    def ends(self) -> None:
        """It has arrived, or nobody waits for it any more."""
        self._stop = None
        self._budget.is_not_slow(self)

    def look(self) -> None:
        """To be called every `CHECK_INTERVAL` while it is arriving."""
        news, self._seen = (self.held - self._seen) / CHECK_INTERVAL, self.held
        self.rate = (self.rate + news) / 2 if self._looks else news
        self._looks += 1
        if self._looks >= GRACE and self.rate < MIN_RATE:
            seconds = self._looks * CHECK_INTERVAL
            fault = UploadTimeout(
                f"The upload arrives too slowly: {self.held:,} bytes did in {seconds:g} seconds, "
                f"and lately less than {MIN_RATE:,} a second. Use a faster connection."
            )
            self.end(fault)
        else:
            self._budget.is_slow(self)

    def end(self, fault: Exception) -> None:
        self._budget.is_not_slow(self)
        if self._stop is not None:
            self._stop(fault)
            self._stop = None
