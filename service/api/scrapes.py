"""The text of `/metrics`, rendered at a bounded rate.

Rendering takes milliseconds of the event loop, more with several front ends, and a client needs no
key to ask for it. Scrapers ask every few seconds and get a new text each time. In a flood of
requests, most get the latest one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.rate_limit import RateLimiter

PER_SECOND = 5
"""Texts that are rendered per second in the long run, so none is older than 0.2 s."""
AT_ONCE = 10
"""Texts that are rendered at once after a pause."""


class Scrapes:
    """Renders one text at a time, at most `AT_ONCE` and `PER_SECOND` more per second."""

    def __init__(
        self,
        render: Callable[[], Awaitable[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            render: Makes a new text.
            clock: Monotonic time, in seconds.
        """
        self._render = render
        self._clock = clock
        self._rendering = asyncio.Lock()
        self._rates = RateLimiter(PER_SECOND, AT_ONCE)  # of one client: all of them together
        self._text = b""

    async def text(self) -> bytes:
        """A new text, or the latest one if as many as allowed were rendered."""
        async with self._rendering:
            now = self._clock()
            if not self._text or self._rates.wait("", now) == 0:
                self._rates.owe("", 1, now)
                self._text = await self._render()
            return self._text
