"""uvicorn, stopping without losing a request.

uvicorn closes every connection that is between two requests the moment it is told to stop, also
one whose next request is on its way, or whose first has not been read yet. Here such connections
get a last moment: a request that arrives in it is answered, with `Connection: close`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.connection import Connection
from service.connections import Connections, bound
from service.reload import reload
from service.serving import Serving
from service.settings import Settings, split

LINGER = 1.0
"""Seconds that a connection between two requests may stay after no new ones are accepted."""


LEFT_AT_ONCE = 130
"""Exit status of a process that was told twice by Ctrl-C: what a shell says of SIGINT."""


class Server(uvicorn.Server):
    """Serves `app` until SIGTERM or SIGINT. SIGINT after either leaves at once; SIGTERM again
    changes nothing. SIGHUP reloads."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(split(settings.trusted_proxies)),
                forwarded_allow_ips=split(settings.trusted_proxies),
                timeout_keep_alive=settings.keep_alive_timeout,
                timeout_graceful_shutdown=settings.shutdown_timeout,
            )
        )
        self.server_state = Connections(bound(settings.max_connections))
        self._serving: Serving = app.state.serving
        self._drain_delay = settings.drain_delay
        self._app = app
        self._reloading = set[asyncio.Task[None]]()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, remembers no signal to raise again at the end: the process leaves
        with a status and does not die by what it has handled."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(LEFT_AT_ONCE)  # whatever hangs, does not any more
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        # Not the loop's own way: it would give the system's default, which is to die, its place
        # back as soon as the loop is closed.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._start_reload))

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(reload(self._app))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, stop accepting, answer what is under way, then let uvicorn do the rest."""
        self._serving.draining = True  # /readyz says so; connections close after their answer
        await self._wait(self._drain_delay)
        for server in self.servers:
            server.close()
        await self._wait(LINGER, while_connected=True)
        await super().shutdown(sockets)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def _wait(self, seconds: float, while_connected: bool = False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.force_exit:
            if while_connected and not self.server_state.connections:
                return
            await asyncio.sleep(0.05)  # as uvicorn itself waits: signals wake nobody
