"""The real service with an engine that the environment controls.

Variables: ENGINE_SECONDS, the time for a batch; ENGINE_WARM_UP_SECONDS, the time for a batch at
warm-up; ENGINE_LOAD_SECONDS, the time to load; ENGINE_ERROR, the message of the exception that each
batch raises, or `load` to fail while loading. ENGINE_DEAD_AFTER and ENGINE_STALLED_AFTER are the
minimum seconds of a batch until the engine counts as dead, and until the server is not ready.
ENGINE_HELD and ENGINE_LOAD_HELD name files: while the file exists, no batch, or no loading, ends.

Run it as `python -m tests.e2e.scripted`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from batching import watchdog
from service.__main__ import main
from service.settings import Settings
from tests.fakes import FakeEngine


class ScriptedEngine(FakeEngine):
    async def computing(self) -> None:
        await until_gone(os.environ.get("ENGINE_HELD"))
        await super().computing()


async def until_gone(file: str | None) -> None:
    while file and os.path.exists(file):  # noqa: ASYNC110, ASYNC240  # there is no event
        await asyncio.sleep(0.01)


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[ScriptedEngine]:
    error = os.environ.get("ENGINE_ERROR")
    if error == "load":
        raise RuntimeError("the engine was told to fail")
    await until_gone(os.environ.get("ENGINE_LOAD_HELD"))
    await asyncio.sleep(float(os.environ.get("ENGINE_LOAD_SECONDS", "0")))
    watchdog.FLOOR = float(os.environ.get("ENGINE_DEAD_AFTER", "60"))
    watchdog.STALLED_FLOOR = float(os.environ.get("ENGINE_STALLED_AFTER", "60"))
    seconds = float(os.environ.get("ENGINE_SECONDS", "0"))
    warm_up = float(os.environ.get("ENGINE_WARM_UP_SECONDS", seconds))
    yield ScriptedEngine(seconds, RuntimeError(error) if error else None, warm_up)


if __name__ == "__main__":
    sys.exit(main("tests.e2e.scripted:load"))
