"""Renders the text of `/metrics`, at a limited rate.

Rendering the text blocks the event loop for milliseconds, and by default clients need no API key to
request the text. Prometheus requests the text every few seconds, and gets a new text each time.
Requests above the limit get the text that was rendered last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.rate_limit import RateLimiter

PER_SECOND = 5
"""Maximum average number of texts rendered per second. The text that clients get is at most 0.2 s
old."""
AT_ONCE = 10
"""Maximum number of texts that may be rendered in immediate succession."""


class Scrapes:
    """Renders one text at a time, within the limits `PER_SECOND` and `AT_ONCE`."""

    def __init__(
        self,
        render: Callable[[], Awaitable[bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            render: Renders a new text.
            clock: Returns a monotonic time, in seconds.
        """
        self._render = render
        self._clock = clock
        self._rendering = asyncio.Lock()
        self._rates = RateLimiter(PER_SECOND, AT_ONCE)  # one bucket for all clients
        self._text = b""

    async def text(self) -> bytes:
        """Return a new text, or the latest text if the limits do not allow a new text now."""
        async with self._rendering:
            now = self._clock()
            if not self._text or self._rates.wait("", now) == 0:
                self._rates.owe("", 1, now)
                self._text = await self._render()
            return self._text
