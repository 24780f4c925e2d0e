"""Watches the engine: gives up a dead one, and reports one that fails on every batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from batching import Batcher

CHECK_INTERVAL = 1.0
"""Seconds between two checks."""


@asynccontextmanager
async def watched(
    batcher: Batcher[Any, Any], on_dead: Callable[[], None], on_failing: Callable[[], None]
) -> AsyncIterator[None]:
    """Check the engine within the context, once per `CHECK_INTERVAL`.

    Args:
        batcher: The batcher of the engine.
        on_dead: Called once when the engine is dead, after all waiting requests have failed.
        on_failing: Called at each check while the engine fails on every recent batch.
    """

    async def watch() -> None:
        while not batcher.engine_is_dead():
            if not batcher.healthy:
                on_failing()
            await asyncio.sleep(CHECK_INTERVAL)
        try:
            batcher.abandon()
        finally:
            on_dead()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
