"""uvicorn, stopping without losing a request, and what listens beside it.

uvicorn closes every connection that is between two requests the moment it is told to stop, also
one whose next request is on its way, or whose first has not been read yet. Here such connections
get a last moment: a request that arrives in it is answered, with `Connection: close`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from service.inference.service import Service
from service.server.connection import Connection, Incoming
from service.server.connection_limit import Connections, bound, descriptors
from service.server.listening import join
from service.server.memory import LOOK_TICKS, Memory, give_back
from service.server.reload import reload
from service.settings import Settings
from service.telemetry.logs import log

ARRIVING = 0.1
"""Seconds in which connections that the kernel has taken reach us; closing now would reset them."""
LINGER = 1.0
"""Seconds that a connection between two requests may stay after no new ones are accepted."""

ACCEPTS = 16
"""Connections taken in one turn of the event loop, from each address."""

LEFT_AT_ONCE = 130
"""Exit status of a process that was told twice by Ctrl-C: what a shell says of SIGINT."""


class Listener(Protocol):
    """What serves on a port of its own."""

    @property
    def connections(self) -> Connections:
        """The connections to that port. Available after `start`."""

    async def start(self) -> None:
        """Raises OSError where the port cannot be had."""

    async def stop(self, seconds: float) -> None:
        """Take nothing new, and give what is under way so long."""


class Server(uvicorn.Server):
    """Serves `app` until SIGTERM or SIGINT. SIGINT after either leaves at once; SIGTERM again
    changes nothing. SIGHUP reloads."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(_config(app, settings, settings.port, lifespan=True))
        self._service: Service = app.state.service
        decoders = self._service.decoders.descriptors
        most = bound(settings.max_connections, descriptors(settings), decoders)
        self._connections = Connections(most)
        self.server_state = self._connections
        self._beside: Sequence[Listener] = app.state.listeners
        self._drain_delay = settings.drain_delay
        self._shutdown_timeout = settings.shutdown_timeout
        self._reloading = set[asyncio.Task[None]]()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, remembers no signal to raise again at the end: the process leaves
        with a status and does not die by what it has handled."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(LEFT_AT_ONCE)  # whatever hangs, does not any more
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            for listener in self._beside:
                await listener.start()
        except OSError as error:
            log.error("%s", error)
            sys.exit(STARTUP_FAILURE)
        connections = [self._connections, *(listener.connections for listener in self._beside)]
        self._memory = Memory(connections, self._service.uploads)
        await super().startup(sockets)
        await self._accept_faster()
        if sockets:  # about which uvicorn says nothing
            self._log_started_message(sockets)
        loop = asyncio.get_running_loop()
        # Not the loop's own way: it would give the system's default, which is to die, its place
        # back as soon as the loop is closed.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._start_reload))

    async def _accept_faster(self) -> None:
        """libuv accepts one connection a turn of the event loop from each listener, and under load
        turns are long: of a thousand that came at once the last waited for seconds. So each socket
        is listened to several times."""
        connect = partial(
            accept,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        for server in list(self.servers):
            for listener in server.sockets * (ACCEPTS - 1):
                again = socket.socket(fileno=os.dup(listener.fileno()))
                self.servers.append(await loop.create_server(connect, sock=again, backlog=backlog))

    async def on_tick(self, counter: int) -> bool:
        if counter % LOOK_TICKS == 0 and self._memory.is_worth_giving_back():
            asyncio.get_running_loop().run_in_executor(None, give_back)
        return await super().on_tick(counter)

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(reload(self._service))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, stop accepting, answer what is under way, then let uvicorn do the rest."""
        self._service.draining = True  # /readyz says so; connections close after their answer
        await self._wait(max(self._drain_delay, ARRIVING))
        for server in self.servers:
            server.close()
        started = time.monotonic()
        stops = [listener.stop(self._shutdown_timeout) for listener in self._beside]
        stopping = [asyncio.ensure_future(stop) for stop in stops]
        await self._wait(LINGER, until=lambda: not self.server_state.connections)
        # While the batcher still runs: it is uvicorn that ends the application.
        await self._wait(
            self._shutdown_timeout + LINGER, until=lambda: all(map(asyncio.Future.done, stopping))
        )
        spent = max(0.0, time.monotonic() - started - LINGER)
        self.config.timeout_graceful_shutdown = max(1, round(self._shutdown_timeout - spent))
        await super().shutdown(sockets)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.force_exit and not until():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # as uvicorn itself waits: signals wake nobody


class SidePort(uvicorn.Server):
    """A Listener that serves `app`, which has no lifespan, over HTTP."""

    def __init__(self, app: Starlette, settings: Settings, port: int) -> None:
        super().__init__(_config(app, settings, port, lifespan=False))
        self.server_state = self.connections = Connections(settings.max_connections)
        self._shared = settings.workers > 1

    async def start(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        sockets = join(self.config.host, self.config.port) if self._shared else None
        await self.startup(sockets)
        if sockets:
            self._log_started_message(sockets)
        self._loop = asyncio.ensure_future(self.main_loop())

    async def stop(self, seconds: float) -> None:
        self.should_exit = True
        await self._loop
        await self.shutdown()

    def _log_started_message(self, listeners: Sequence[socket.SocketType]) -> None:
        address = listeners[0].getsockname()
        log.info("metrics on http://%s:%d", address[0], address[1])


def accept(**uvicorn: Any) -> Incoming:
    """What receives from a new connection."""
    return Incoming(Connection(**uvicorn))


def _config(app: ASGIApp, settings: Settings, port: int, *, lifespan: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        loop="uvloop",
        http=accept,  # type: ignore[arg-type]  # called as the class of a protocol would be
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `RequestMiddleware` reads them
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
