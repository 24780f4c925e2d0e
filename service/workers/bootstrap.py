"""What the supervisor tells the processes it starts, through a pipe to their standard input.

The first line says what to do; whatever follows, to finish and leave. The end of the pipe says
that the supervisor is gone, however it went: the kernel closes its end. Then a process leaves at
once, from a thread of its own, whatever its event loop is doing. (PR_SET_PDEATHSIG would do the
same with more conditions: docs/decisions/0023-front-end-processes.md.)
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, SecretStr

from service.settings import Settings

STOP = b"stop\n"
STDIN = 0
ORPHANED = 1
"""Exit status of a process whose supervisor is gone."""


class Bootstrap(BaseModel):
    model_config = ConfigDict(frozen=True)

    settings: dict[str, Any]
    """Of this process: its share of what the service may take."""
    folder: str
    """Private, for as long as the supervisor lives."""
    sockets: list[int]
    """File descriptors to accept from."""
    load_engine: str
    """`module:function`."""

    @classmethod
    def of(cls, settings: Settings, folder: str, sockets: list[int], load_engine: str) -> Bootstrap:
        told = settings.model_dump()
        return cls(settings=told, folder=folder, sockets=sockets, load_engine=load_engine)

    def line(self) -> bytes:
        return orjson.dumps(self.model_dump(), default=_plain) + b"\n"


def receive() -> tuple[Bootstrap, Settings]:
    """The first line. Leaves where there is none to come."""
    line = b""
    while not line.endswith(b"\n"):
        # Byte by byte, without a buffer: what follows is for `obey`, and a thread that waits inside
        # a buffered reader cannot be left behind at exit.
        if not (byte := os.read(STDIN, 1)):
            os._exit(ORPHANED)
        line += byte
    orders = Bootstrap.model_validate_json(line)
    return orders, Settings(**orders.settings)


def obey(orders: Bootstrap, stop: Callable[[], object]) -> None:
    """From now on call `stop`, in a thread, when told so, and leave with the supervisor."""

    def listen() -> None:
        while os.read(STDIN, 64):
            stop()
        shutil.rmtree(orders.folder, ignore_errors=True)  # which it could not
        os._exit(ORPHANED)

    threading.Thread(target=listen, name="orders", daemon=True).start()


def _plain(value: Any) -> str:
    """Secrets as they are: the pipe is between the two of us."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
