"""Data that the supervisor sends to each process at its start, over standard input.

Standard input is a pipe. The first line contains the settings. Further bytes tell the process to
finish its work and exit. The end of the pipe means that the supervisor has ended. The process then
exits immediately. A thread watches the pipe, so the process also exits when the event loop is
blocked.

PR_SET_PDEATHSIG would be an alternative; docs/decisions/0023-front-end-processes.md compares both
methods.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, SecretStr

from service.exit_status import ExitStatus
from service.settings import Settings

STOP = b"stop\n"
"""Line that tells a process to finish its work and exit."""
STDIN = 0


class Bootstrap(BaseModel):
    """Data that a process needs to start: its settings, its sockets, and how to load the engine."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Settings of this process. A front end, which serves HTTP, gets a share of some limits."""
    folder: str
    """Private folder that all processes share. The supervisor deletes the folder when it exits."""
    sockets: list[int]
    """File descriptors of the listening sockets of this process."""
    load_engine: str
    """Function that loads the engine, as `module:function`."""

    @classmethod
    def of(cls, settings: Settings, folder: str, sockets: list[int], load_engine: str) -> Bootstrap:
        """Build the `Bootstrap` of one process. The arguments become its fields."""
        return cls(
            settings=settings.model_dump(),
            folder=folder,
            sockets=sockets,
            load_engine=load_engine,
        )

    def line(self) -> bytes:
        """Encode as one line of JSON. The line contains secrets, so it is sent over a pipe only."""
        return orjson.dumps(self.model_dump(), default=_as_text) + b"\n"

    def open_sockets(self) -> list[socket.socket]:
        """Return the listening sockets of this process. Callers must call this method only once."""
        return [socket.socket(fileno=descriptor) for descriptor in self.sockets]


def receive() -> tuple[Bootstrap, Settings]:
    """Return the contents of the first line of standard input.

    Exits the process if the supervisor ends before it has sent the whole line.
    """
    line = b""
    while not line.endswith(b"\n"):
        # This loop reads unbuffered, byte by byte, because `watch_supervisor` reads the bytes after
        # the line. A thread that waits in a buffered reader would block the interpreter's exit.
        if not (byte := os.read(STDIN, 1)):
            os._exit(ExitStatus.FAILED)
        line += byte
    bootstrap = Bootstrap.model_validate_json(line)
    return bootstrap, Settings(**bootstrap.settings)


def watch_supervisor(bootstrap: Bootstrap, stop: Callable[[], object]) -> None:
    """Watch the supervisor in a thread, and exit this process when the supervisor has ended.

    Args:
        bootstrap: The data that this process has received. Its folder is deleted before the exit.
        stop: Function that the thread calls when the supervisor sends `STOP`.
    """

    def watch() -> None:
        while os.read(STDIN, 64):
            stop()
        # The supervisor ended without deleting the folder.
        shutil.rmtree(bootstrap.folder, ignore_errors=True)
        os._exit(ExitStatus.FAILED)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def _as_text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
