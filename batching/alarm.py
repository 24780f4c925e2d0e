"""Alarm: lets one task sleep until a time, and other code wake it earlier."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from batching.completion import on_error, reject


class Alarm:
    """At most one task sleeps at a time."""

    def __init__(self) -> None:
        self._rings: asyncio.Future[None] | None = None
        self._at = math.inf

    async def sleep(self, until: float, now: float) -> None:
        """Sleep until `until`, in seconds by the caller's clock, or until woken.

        Args:
            until: Infinity to sleep until woken.
            now: Current time by the same clock.
        """
        loop = asyncio.get_running_loop()
        self._rings, self._at = loop.create_future(), until
        timer = loop.call_later(until - now, self.wake) if until < math.inf else None
        try:
            await self._rings
        finally:
            self._rings = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """Wake the task that sleeps, if there is one."""
        if self._rings is not None and not self._rings.done():
            self._rings.set_result(None)

    def wake_if_earlier(self, due_at: Callable[[], float]) -> None:
        """Wake the task that sleeps, if `due_at()` is earlier than the time it sleeps until.

        If `due_at` raises, `sleep` raises its exception.
        """
        rings = self._rings
        if rings is not None and not rings.done():
            with on_error(reject, rings):
                if due_at() < self._at:
                    rings.set_result(None)
