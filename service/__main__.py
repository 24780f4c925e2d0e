"""`python -m service`: serve until SIGTERM or Ctrl-C. Ctrl-C twice leaves at once, with 130.

Exit status: 0 after a clean stop, 1 when the model cannot be served, 2 when a setting is wrong, 3
when the port cannot be had, 4 when the engine died under way and a new process should take over.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    # Before the imports below, which take a second or more. A signal that nobody handles is lost on
    # process 1 of a container, and elsewhere Ctrl-C would end in a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload

from fastapi import FastAPI

from service.app import create_app
from service.logs import configure, log
from service.server import Server
from service.serving import DEAD, Serving
from service.settings import BadSettings, Settings, load_settings, unknown


def main() -> int:
    try:
        settings = load_settings()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    configure(settings)
    for line in unknown(os.environ):
        log.warning(line)
    try:
        app = create_app(settings)
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    return serve(app, settings)


def serve(app: FastAPI, settings: Settings) -> int:
    """Serve `app` until a signal; the exit status."""
    server = Server(app, settings)
    # uvicorn takes these over once its loop runs. Until then, and after, they are handled as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    server.run()
    serving: Serving = app.state.serving
    if serving.dead:
        return DEAD
    if serving.failure is not None:
        log.error("the model cannot be served: %s", serving.failure)
        return 1
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
