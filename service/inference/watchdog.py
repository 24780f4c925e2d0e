"""The watchdog's act: an engine that is dead is given up, and whoever runs it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from batching import Batcher

EVERY = 1.0
"""Seconds between two looks."""


@asynccontextmanager
async def watched(batcher: Batcher[Any, Any], dead: Callable[[], None]) -> AsyncIterator[None]:
    """Within, look at the engine. When it is dead, everybody who waits for it is told so, and then
    `dead` is called, once."""

    async def watch() -> None:
        while not batcher.engine_is_dead():  # noqa: ASYNC110  # looking is what it is for
            await asyncio.sleep(EVERY)
        try:
            batcher.abandon()
        finally:
            dead()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
