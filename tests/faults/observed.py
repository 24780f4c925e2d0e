"""The real service, which logs each second the minimum number of tasks of its event loop.

That is the number between requests, which grows if tasks leak. Run it as
`python -m tests.faults.observed`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from model_store.engine import LaneEngine
from service.__main__ import serve
from service.app import create_app, load_engine
from service.settings import Settings, load_settings
from service.telemetry.logs import configure, log

OBSERVED = ("-m", "tests.faults.observed")
LOOKS = 50


@asynccontextmanager
async def load(settings: Settings) -> AsyncIterator[LaneEngine]:
    async def observe() -> None:
        while True:
            fewest = len(asyncio.all_tasks())
            for _ in range(LOOKS):
                await asyncio.sleep(1 / LOOKS)
                fewest = min(fewest, len(asyncio.all_tasks()))
            log.warning("tasks", extra={"fields": {"tasks": fewest}})

    async with load_engine(settings) as engine:
        observing = asyncio.create_task(observe())
        yield engine
        observing.cancel()


if __name__ == "__main__":
    settings = load_settings()
    configure(settings)
    sys.exit(serve(create_app(settings, load), settings))
