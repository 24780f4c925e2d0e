"""Uvicorn's server with a shutdown that loses no requests, and servers on additional ports.

When uvicorn stops, it immediately closes connections that are between two requests, including
those whose next request is already on its way. Here they stay open for `LINGER_SECONDS`: a request
that arrives meanwhile is answered with `Connection: close`.
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

from service.exit_status import ExitStatus
from service.inference.service import Service
from service.server.connection import Connection
from service.server.connection_limit import METRICS_CONNECTIONS, Connections, usable_limit
from service.server.listening import join
from service.server.memory import CHECK_TICKS, Memory, give_back
from service.server.reload import reload
from service.server.transport import Incoming
from service.settings import Settings
from service.telemetry.logs import log

ACCEPT_SECONDS = 0.1
"""Seconds in which the server accepts connections that the kernel has accepted already. Closing the
socket earlier would reset them."""
LINGER_SECONDS = 1.0
"""Seconds that a connection between two requests stays open after new ones are not accepted."""
ACCEPTS = 16
"""Maximum number of connections that are accepted in one turn of the event loop per address."""


class Listener(Protocol):
    """A server on an additional port."""

    @property
    def connections(self) -> Connections:
        """Open connections. Available after `start`."""

    async def start(self) -> None:
        """Start to serve. Raises OSError when the port is not available."""

    async def stop(self, seconds: float) -> None:
        """Stop to accept, and wait up to `seconds` for requests in progress."""


class Server(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT.

    A SIGINT after that exits immediately; a second SIGTERM has no effect. SIGHUP reloads.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        """
        Args:
            app: What `create_app` returns. Its state has the additional servers (`listeners`).
            settings: The settings that it was built with.
        """
        super().__init__(_config(app, settings, settings.port, lifespan=True))
        self._service: Service = app.state.service
        decoders = self._service.decoders.descriptors
        self._connections = Connections(usable_limit(settings, decoders))
        self.server_state = self._connections
        self._listeners: Sequence[Listener] = app.state.listeners
        self._drain_delay = settings.drain_delay
        self._shutdown_timeout = settings.shutdown_timeout
        self._reloading = set[asyncio.Task[None]]()

    def handle_signals(self) -> None:
        """Handle SIGINT and SIGTERM from now on. Uvicorn does so only while its loop runs."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM. Unlike uvicorn, does not raise the signal again at the end:
        the process exits with a status."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(ExitStatus.INTERRUPTED)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            for listener in self._listeners:
                await listener.start()
        except OSError as error:
            log.error("%s", error)
            sys.exit(ExitStatus.CANNOT_LISTEN)
        connections = [self._connections, *(listener.connections for listener in self._listeners)]
        self._memory = Memory(connections, self._service.uploads)
        await super().startup(sockets)
        await self._accept_more_per_turn()
        if sockets:  # uvicorn does not log these
            self._log_started_message(sockets)
        loop = asyncio.get_running_loop()
        # Not `loop.add_signal_handler`: closing the loop restores the system's default, which ends
        # the process.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._start_reload))

    async def _accept_more_per_turn(self) -> None:
        """Listen to each socket `ACCEPTS` times. libuv accepts one connection per listener and turn
        of the event loop, and under load turns are long: of 1,000 connections at the same time, the
        last one waited for seconds."""
        connect = partial(
            accept,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        for server in list(self.servers):
            for listener in server.sockets * (ACCEPTS - 1):
                copy = socket.socket(fileno=os.dup(listener.fileno()))
                self.servers.append(await loop.create_server(connect, sock=copy, backlog=backlog))

    async def on_tick(self, counter: int) -> bool:
        if counter % CHECK_TICKS == 0 and self._memory.is_worth_giving_back():
            asyncio.get_running_loop().run_in_executor(None, give_back)
        return await super().on_tick(counter)

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(reload(self._service))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Report not ready, stop to accept, answer requests in progress, then shut uvicorn down."""
        self._service.draining = True  # /readyz reports it; connections close after an answer
        await self._wait(max(self._drain_delay, ACCEPT_SECONDS))
        for server in self.servers:
            server.close()
        started = time.monotonic()
        stops = [listener.stop(self._shutdown_timeout) for listener in self._listeners]
        stopping = [asyncio.ensure_future(stop) for stop in stops]
        await self._wait(LINGER_SECONDS, until=lambda: not self.server_state.connections)
        # Before uvicorn shuts down, which ends the application and its batcher.
        await self._wait(
            self._shutdown_timeout + LINGER_SECONDS,
            until=lambda: all(map(asyncio.Future.done, stopping)),
        )
        spent = max(0.0, time.monotonic() - started - LINGER_SECONDS)
        self.config.timeout_graceful_shutdown = max(1, round(self._shutdown_timeout - spent))
        await super().shutdown(sockets)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def _wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.force_exit and not until():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # uvicorn polls too: signal handlers only set flags


class SidePort(uvicorn.Server):
    """Serves an application over HTTP on an additional port. A `Listener`."""

    def __init__(self, app: Starlette, settings: Settings, port: int) -> None:
        """
        Args:
            app: The application. Its lifespan is not run.
            settings: The settings of the service.
            port: The port. 0: any free one.
        """
        super().__init__(_config(app, settings, port, lifespan=False))
        self.server_state = self.connections = Connections(METRICS_CONNECTIONS)
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
    """Create the protocol of a new connection. Uvicorn passes the arguments of its own protocol."""
    return Incoming(Connection(**uvicorn))


def _config(app: ASGIApp, settings: Settings, port: int, *, lifespan: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        loop="uvloop",
        http=accept,  # type: ignore[arg-type]  # called like the class of a protocol
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `RequestMiddleware` reads them
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
