"""A process that the supervisor starts, as many times as need be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass

from service.workers.bootstrap import Bootstrap


@dataclass(eq=False)
class Child:
    """Its name, and what it is told as it starts."""

    name: str
    orders: Bootstrap
    process: asyncio.subprocess.Process | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> asyncio.subprocess.Process:
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.workers", self.name),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self.orders.folder},
            pass_fds=self.orders.sockets,
            start_new_session=True,
            preexec_fn=_mind_no_reload,  # other threads of the supervisor only wait for children
        )
        self.tell(self.orders.line())
        return process

    def tell(self, line: bytes) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(line)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def _mind_no_reload() -> None:
    """From its first moment, until it has something to reload: a SIGHUP would end it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
