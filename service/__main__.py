"""`python -m service`: serve until SIGTERM or Ctrl-C. A second Ctrl-C exits immediately.

The settings come from the environment (`settings`), and `exit_status` lists the exit statuses. With
`--worker NAME`, which only the supervisor uses, this is one process of a service with several.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from functools import partial

if __name__ == "__main__":
    # Before the imports below, which take a second or more. Process 1 of a container ignores
    # signals without a handler, and elsewhere Ctrl-C would print a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload

import uvloop
from fastapi import FastAPI

from service.app import LOAD_ENGINE, create_app, create_engine_server, imported
from service.exit_status import ExitStatus
from service.http.origins import allowed_hosts, is_loopback
from service.inference.model_host import exit_status
from service.inference.service import Service
from service.server.server import Server
from service.settings import PREFIX, BadSettings, Settings, load_settings, unknown
from service.telemetry.logs import configure, log
from service.workers import engine_process
from service.workers.bootstrap import receive, watch_supervisor
from service.workers.process import ARGUMENT
from service.workers.supervisor import ENGINE, Supervisor

YOUNG_THRESHOLD = 5000
"""Number of new objects after which Python collects young garbage. Python's default is 700."""
FULL_COLLECTION = 20
"""Number of collections of the middle generation between two full ones. Python's default is 10."""


def main(load_engine: str = LOAD_ENGINE) -> int:
    """Serve with the settings from the environment until a signal.

    Args:
        load_engine: `module:function` of the function that loads the engine. It is a name because
            another process may call it.

    Returns:
        The exit status.
    """
    try:
        settings = load_settings()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return ExitStatus.BAD_SETTINGS
    configure(settings)
    for line in unknown(os.environ):
        log.warning(line)
    try:
        app = create_app(settings, imported(load_engine))
    except BadSettings as error:
        print(error, file=sys.stderr)
        return ExitStatus.BAD_SETTINGS
    if not is_loopback(settings.host):
        log.info(
            "requests are accepted for these hosts: %s (%sALLOWED_HOSTS adds names)",
            *(allowed_hosts(settings), PREFIX),
        )
    if settings.workers == 1:
        return serve(app, settings)
    return supervise(settings, load_engine)  # each front end builds its own application


def serve(app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None) -> int:
    """Serve an application until a signal.

    Args:
        app: The application.
        settings: The settings that it was built with.
        sockets: Bound sockets to listen on. None: bind the address in the settings.

    Returns:
        The exit status.
    """
    server = Server(app, settings)
    _configure_garbage_collection()
    server.handle_signals()
    server.run(sockets)
    service: Service = app.state.service
    if status := exit_status(service.engine.failure):
        return status
    log.info("stopped")
    return ExitStatus.STOPPED


def supervise(settings: Settings, load_engine: str) -> int:
    """Run the service in several processes until a signal. Returns the exit status."""
    try:
        status = asyncio.run(Supervisor(settings, load_engine).run())
    except OSError as error:
        log.error("%s", error)
        return ExitStatus.CANNOT_LISTEN
    if status == ExitStatus.STOPPED:
        log.info("stopped")
    return status


def work(name: str) -> int:
    """Run one process of a service with several: the engine or a front end. Returns the exit
    status."""
    bootstrap, settings = receive()
    configure(settings)
    if name == ENGINE:
        load_engine = imported(bootstrap.load_engine)
        create_server = partial(create_engine_server, settings, load_engine, bootstrap.folder)
        return uvloop.run(engine_process.run(bootstrap, create_server))
    watch_supervisor(bootstrap, stop=lambda: None)  # front ends stop on SIGTERM
    app = create_app(settings, folder=bootstrap.folder)
    return serve(app, settings, bootstrap.open_sockets())


def _configure_garbage_collection() -> None:
    """Exclude all objects that exist now from garbage collection, and collect less often. With a
    thousand uploads in progress, each full collection blocked the event loop for 50 ms or more and
    freed nothing: docs/decisions/0026-full-collections-come-rarely.md."""
    gc.collect()
    gc.freeze()
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(YOUNG_THRESHOLD, middle, FULL_COLLECTION)


if __name__ == "__main__":
    sys.exit(work(sys.argv[2]) if sys.argv[1:2] == [ARGUMENT] else main())
