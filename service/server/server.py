"""Uvicorn's server with a shutdown that loses no requests, and servers on additional ports.

When uvicorn stops, it immediately closes idle connections, even if the client has just sent the
next request. This server keeps idle connections open for `LINGER_SECONDS`, and responds to requests
that arrive in this time with `Connection: close`.
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
from service.server.listening import join, listen
from service.server.memory import CHECK_TICKS, Memory, give_back
from service.server.reload import reload
from service.server.transport import Incoming
from service.settings import Settings
from service.telemetry.logs import log

ACCEPT_SECONDS = 0.1
"""After a stop signal, the server accepts connections from the kernel's backlog for this number of
seconds. Closing the socket earlier would reset these connections."""
LINGER_SECONDS = 1.0
"""Number of seconds that idle connections stay open after the server stops accepting new
connections."""
ACCEPTS = 16
"""Maximum number of connections that the server accepts per address and turn of the event loop."""


class Listener(Protocol):
    """A server on an additional port."""

    @property
    def connections(self) -> Connections:
        """Open connections of this server. Available after `start`."""

    async def start(self) -> None:
        """Start the server. Raises OSError when the port is not available."""

    async def stop(self, seconds: float) -> None:
        """Stop accepting connections, and wait up to `seconds` for requests in progress."""


class Server(uvicorn.Server):
    """Serves an application until SIGTERM or SIGINT.

    On a SIGINT during the shutdown, the process exits immediately. A SIGTERM during the shutdown
    has no effect. SIGHUP reloads the API keys and the model.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        """
        Args:
            app: Application that `create_app` returned. Its state has the service (`service`) and
                the servers on additional ports (`listeners`).
            settings: Settings that `app` was created with.
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
        """Handle SIGINT and SIGTERM from now on. Uvicorn handles these signals only in its main
        loop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown after SIGINT or SIGTERM.

        Uvicorn would raise the signal again at the end of the shutdown. This server does not raise
        the signal, and the process exits with a status instead.
        """
        if self.should_exit and sig == signal.SIGINT:
            os._exit(ExitStatus.INTERRUPTED)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        started = list[Listener]()
        try:
            # The port is opened before the model is loaded, so that an error is reported early.
            sockets = sockets or listen(self.config.host, self.config.port)
            for listener in self._listeners:
                await listener.start()
                started.append(listener)
        except OSError as error:
            log.error("%s", error)
            for listener in started:
                await listener.stop(0)
            sys.exit(ExitStatus.CANNOT_LISTEN)
        connections = [self._connections, *(listener.connections for listener in self._listeners)]
        self._memory = Memory(connections, self._service.uploads)
        await super().startup(sockets)
        await self._accept_more_per_turn()
        self._log_started_message(sockets)  # uvicorn logs no message for given sockets
        loop = asyncio.get_running_loop()
        # `loop.add_signal_handler` is not used, because closing the loop would restore the default
        # action of SIGHUP, which ends the process.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._start_reload))

    async def _accept_more_per_turn(self) -> None:
        """Add listeners to each socket, up to `ACCEPTS` in total.

        libuv accepts one connection per listener and turn of the event loop, and turns are long
        under load. With one listener, the last of 1,000 concurrent connections waited for seconds.
        """
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
        """Report not ready, stop accepting connections, finish the requests in progress, then shut
        uvicorn down."""
        self._service.draining = True  # /readyz gets 503, and responses have `Connection: close`
        await self._wait(max(self._drain_delay, ACCEPT_SECONDS))
        for server in self.servers:
            server.close()
        started = time.monotonic()
        stops = [listener.stop(self._shutdown_timeout) for listener in self._listeners]
        stopping = [asyncio.ensure_future(stop) for stop in stops]
        await self._wait(LINGER_SECONDS, until=lambda: not self.server_state.connections)
        # The additional servers must stop first: uvicorn's shutdown ends the application's batcher.
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
    """Serves an application over HTTP on an additional port. Implements `Listener`."""

    def __init__(self, app: Starlette, settings: Settings, port: int) -> None:
        """
        Args:
            app: Application to serve. Its lifespan events are not run.
            settings: Settings of the service.
            port: TCP port. 0: any free port.
        """
        super().__init__(_config(app, settings, port, lifespan=False))
        self.server_state = self.connections = Connections(METRICS_CONNECTIONS)
        self._shared = settings.workers > 1

    async def start(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        host, port = self.config.host, self.config.port
        try:
            sockets = join(host, port) if self._shared else listen(host, port)
        except OSError as error:
            raise OSError(f"metrics {error.strerror}") from error
        await self.startup(sockets)
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
    """Create the protocol of a new connection.

    Args:
        uvicorn: Arguments that uvicorn passes to its own protocol class.
    """
    return Incoming(Connection(**uvicorn))


def _config(app: ASGIApp, settings: Settings, port: int, *, lifespan: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        loop="uvloop",
        http=accept,  # type: ignore[arg-type]  # uvicorn calls it like a protocol class
        ws="none",
        lifespan="on" if lifespan else "off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `RequestMiddleware` reads the headers of proxies
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
