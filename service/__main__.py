"""`python -m service`: serve until SIGTERM or Ctrl-C. Ctrl-C twice leaves at once, with 130.

Exit status: 0 after a clean stop, 1 when the model cannot be served, 2 when a setting is wrong, 3
when the port cannot be had, 4 when the engine died under way and a new process should take over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys

if __name__ == "__main__":
    # Before the imports below, which take a second or more. A signal that nobody handles is lost on
    # process 1 of a container, and elsewhere Ctrl-C would end in a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload

from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE

from service.app import LOAD_ENGINE, create_app, imported
from service.http.origins import allowed_hosts, is_loopback
from service.inference.model_host import exit_status
from service.inference.service import Service
from service.server.server import Server
from service.settings import PREFIX, BadSettings, Settings, load_settings, unknown
from service.telemetry.logs import configure, log
from service.workers.supervisor import Supervisor

YOUNG = 5000
"""Objects more than there were at which Python looks for cycles among the young; its own is 700."""
FULL_COLLECTION = 20
"""Collections of the middle generation between two full ones; Python's own is 10."""


def main(load_engine: str = LOAD_ENGINE) -> int:
    """`load_engine`: `module:function`, since the process that calls it may be another."""
    try:
        settings = load_settings()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    configure(settings)
    for line in unknown(os.environ):
        log.warning(line)
    try:
        app = create_app(settings, imported(load_engine))
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    if not is_loopback(settings.host):
        log.info(
            "requests are accepted for these hosts: %s (%sALLOWED_HOSTS adds names)",
            *(allowed_hosts(settings), PREFIX),
        )
    if settings.workers == 1:
        return serve(app, settings)
    return supervise(settings, load_engine)  # each front end builds an application of its own


def serve(app: FastAPI, settings: Settings, sockets: list[socket.socket] | None = None) -> int:
    """Serve `app` until a signal; the exit status. `sockets`: to listen on, in place of those that
    the settings name."""
    server = Server(app, settings)
    _settle()
    # uvicorn takes these over once its loop runs. Until then, and after, they are handled as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    server.run(sockets)
    service: Service = app.state.service
    if status := exit_status(service.engine.failure):
        return status
    log.info("stopped")
    return 0


def _settle() -> None:
    """What is there by now stays: full collections of garbage pass over it, and come rarely. With a
    thousand uploads under way each held the event loop for 50 ms and more, and found nothing:
    docs/decisions/0026-full-collections-come-rarely.md."""
    gc.collect()
    gc.freeze()
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(YOUNG, middle, FULL_COLLECTION)


def supervise(settings: Settings, load_engine: str) -> int:
    """Let several processes serve until a signal; the exit status."""
    try:
        status = asyncio.run(Supervisor(settings, load_engine).run())
    except OSError as error:
        log.error("%s", error)
        return STARTUP_FAILURE
    if status == 0:
        log.info("stopped")
    return status


if __name__ == "__main__":
    sys.exit(main())
