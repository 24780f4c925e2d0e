"""Runs the service inside this process and without a port, for `shoal predict` without `--url`.

Requests pass through the same application as in a server, so an image gets the same prediction or
error as from a server.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from shoal.errors import NotServed

URL = "http://localhost"
POLL_INTERVAL = 0.02
"""Number of seconds between two checks of whether the service is ready."""


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.ASGITransport]:
    """Runs the application within the context.

    Args:
        app: Application that `create_app` returned.

    Yields:
        A transport that calls `app`, for clients of `URL`. The service is ready.

    Raises:
        NotServed: The model cannot be loaded.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The service sends itself SIGTERM if the model cannot be loaded.
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            while (await client.get("/readyz")).status_code != 200:
                if stopped.is_set():
                    raise NotServed(str(app.state.service.engine.failure or "stopped"))
                await asyncio.sleep(POLL_INTERVAL)
        loop.remove_signal_handler(signal.SIGTERM)
        yield transport
