"""Runs the service with `python -m service`, until SIGTERM or Ctrl-C.

On a second Ctrl-C, the process exits immediately. The settings are read from environment variables
(see `service.settings`). The module `service.exit_status` lists the exit statuses. If SHOAL_WORKERS
is more than 1, this process is the supervisor. The supervisor starts the engine process and the
front ends with `python -m service --worker NAME`. The front ends accept the requests.
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
    # These handlers are set before the imports below, which take a second or more. Without them,
    # Ctrl-C during the imports would print a traceback, and process 1 of a container would ignore
    # the signals.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server can handle the signal

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
"""Number of new objects after which Python collects its young generation (Python's default:
700)."""
FULL_COLLECTION = 20
"""Number of collections of the middle generation before a full collection (Python's default:
10)."""


def main(load_engine: str = LOAD_ENGINE) -> int:
    """Run the service with the settings from the environment until SIGTERM or SIGINT.

    Args:
        load_engine: Name of the function that loads the engine, as `module:function`. A name can be
            sent to the engine process; a function cannot.

    Returns:
        The exit status of the process.
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
            "requests are accepted for these hosts: %s; to add names, set %sALLOWED_HOSTS",
            *(allowed_hosts(settings), PREFIX),
        )
    if settings.workers == 1:
        return serve(app, settings)
    # The application above was only built to check the settings. Each front end builds its own
    # application.
    return supervise(settings, load_engine)


def serve(app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None) -> int:
    """Serve an application until SIGTERM or SIGINT.

    Args:
        app: The application.
        settings: The settings that the application was built with.
        sockets: Bound sockets to listen on. None: the server binds the address in the settings.

    Returns:
        The exit status of the process.
    """
    server = Server(app, settings)
    _configure_garbage_collection()
    server.handle_signals()
    server.run(sockets)
    service: Service = app.state.service
    if status := exit_status(service.engine.failure):
        return status
    if service.failed:
        return ExitStatus.FAILED
    log.info("stopped")
    return ExitStatus.STOPPED


def supervise(settings: Settings, load_engine: str) -> int:
    """Run the service in several processes until SIGTERM or SIGINT. Returns the exit status."""
    try:
        status = asyncio.run(Supervisor(settings, load_engine).run())
    except OSError as error:
        log.error("%s", error)
        return ExitStatus.CANNOT_LISTEN
    if status == ExitStatus.STOPPED:
        log.info("stopped")
    return status


def work(name: str) -> int:
    """Run the process `name`: the engine process or a front end. Returns the exit status."""
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
    """Exclude all objects that exist now from garbage collection, and run the collector less often.

    With a thousand uploads in progress, each full collection blocked the event loop for 50 ms or
    more and freed nothing (docs/decisions/0026-full-collections-come-rarely.md).
    """
    gc.collect()
    gc.freeze()
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(YOUNG_THRESHOLD, middle, FULL_COLLECTION)


if __name__ == "__main__":
    sys.exit(work(sys.argv[2]) if sys.argv[1:2] == [ARGUMENT] else main())
