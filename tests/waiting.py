"""Waits for conditions that no event announces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 60.0


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Lets other tasks run until `condition()` is true. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.001)
