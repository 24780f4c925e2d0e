"""The service in this very process, without a port: what `shoal predict` asks where no server is.

It is the whole of it, from reading the upload to the batcher, so that an image gets the answer or
the refusal here that it would get from a server.
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
LOOK_EVERY = 0.02


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.ASGITransport]:
    """What takes a client of URL to `app`, the service, once that is ready. Raises NotServed."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Where the model fails, the service sends this to itself, to end.
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            while (await client.get("/readyz")).status_code != 200:
                if stopped.is_set():
                    raise NotServed(str(app.state.serving.failure or "stopped"))
                await asyncio.sleep(LOOK_EVERY)
        loop.remove_signal_handler(signal.SIGTERM)
        yield transport
