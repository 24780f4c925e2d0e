"""What the supervisor sends to the processes that it starts, over a pipe to their standard input.

The first line holds the settings. Further bytes tell the process to finish its work and exit. The
end of the pipe means that the supervisor is gone, for whatever reason: the kernel closes its end.
The process then exits immediately, from a thread, even when its event loop is blocked.
(PR_SET_PDEATHSIG does the same under more conditions: docs/decisions/0023-front-end-processes.md.)
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
"""Tells a process to finish its work and exit."""
STDIN = 0


class Bootstrap(BaseModel):
    """What a process needs to start."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Settings of this process. A front end gets its share of the limits."""
    folder: str
    """Private folder that all processes share. The supervisor deletes it when it exits."""
    sockets: list[int]
    """File descriptors of the sockets to accept connections from."""
    load_engine: str
    """`module:function` of the function that loads the engine."""

    @classmethod
    def of(cls, settings: Settings, folder: str, sockets: list[int], load_engine: str) -> Bootstrap:
        """Build the bootstrap of one process. The arguments are the fields of this class."""
        return cls(
            settings=settings.model_dump(),
            folder=folder,
            sockets=sockets,
            load_engine=load_engine,
        )

    def line(self) -> bytes:
        """Encode as one line of JSON. It contains secrets: the pipe is private."""
        return orjson.dumps(self.model_dump(), default=_as_text) + b"\n"

    def open_sockets(self) -> list[socket.socket]:
        """The sockets of this process. Call once."""
        return [socket.socket(fileno=descriptor) for descriptor in self.sockets]


def receive() -> tuple[Bootstrap, Settings]:
    """Read the first line. Exits the process when the supervisor is gone before it was sent."""
    line = b""
    while not line.endswith(b"\n"):
        # Unbuffered, byte by byte: `watch_supervisor` reads what follows, and a thread that waits
        # inside a buffered reader would block the exit of the interpreter.
        if not (byte := os.read(STDIN, 1)):
            os._exit(ExitStatus.FAILED)
        line += byte
    bootstrap = Bootstrap.model_validate_json(line)
    return bootstrap, Settings(**bootstrap.settings)


def watch_supervisor(bootstrap: Bootstrap, stop: Callable[[], object]) -> None:
    """Watch the supervisor from a thread: call `stop` there when it sends `STOP`, and exit the
    process when the supervisor is gone."""

    def watch() -> None:
        while os.read(STDIN, 64):
            stop()
        shutil.rmtree(bootstrap.folder, ignore_errors=True)  # the supervisor could not delete it
        os._exit(ExitStatus.FAILED)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


def _as_text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
