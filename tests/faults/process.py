"""A server that is killed and started again at the same port, and figures of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
import socket
import time
from collections import Counter

from benchmarks.processes import wait_until_ended
from service.workers.process import ARGUMENT
from service.workers.supervisor import ENGINE
from tests.e2e.process import PATIENCE, Server, wait_until_ready

ALL_READY = 12
"""Number of connections in a row on which `/readyz` must answer 200 until all front ends are
ready."""


class Restarted:
    """A service that tests kill, as a whole or one of its processes, and that returns at the same
    port."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = arguments
        self._environment = environment | {"SHOAL_PORT": str(self.port)}
        self._several = int(environment.get("SHOAL_WORKERS", "1")) > 1
        self._server: Server | None = None
        self._away_since: float | None = time.monotonic()
        self._back_at = 0.0
        self.kills = Counter[str]()

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def was_away(self, since: float) -> bool:
        """Returns whether it was unavailable at any time since `since`, as a whole or for some
        connections."""
        return self._away_since is not None or self._back_at > since

    async def start(self) -> None:
        """Starts the service. Returns once it is ready."""
        self._server = Server(*self._arguments, **self._environment).start()
        await self._ready()
        self._is_back()

    async def kill(self) -> None:
        """Kills the whole service with SIGKILL. Returns once all its processes have ended."""
        self.kills["all of it"] += 1
        self._away_since = time.monotonic()
        others = processes(self.server.pid).values()
        self.server.send(signal.SIGKILL)
        await asyncio.to_thread(self.server.wait)
        await asyncio.to_thread(wait_until_ended, others, PATIENCE)

    async def kill_one(self, name: str) -> None:
        """Kills one process, and waits until another has taken its place. Only the death of a front
        end breaks clients' connections."""
        self.kills[name] += 1
        if name != ENGINE:
            self._away_since = time.monotonic()
        killed = processes(self.server.pid)[name]
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while processes(self.server.pid).get(name) in (None, killed):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await self._ready()
        if name != ENGINE:
            self._is_back()

    async def stop(self) -> int:
        """Stops the service with SIGTERM. Returns the exit status."""
        self._away_since = time.monotonic()
        return await asyncio.to_thread(self.server.stop)

    def end(self) -> None:
        """Ends the service in any state."""
        if self._server is not None:
            self._server.end()

    def resident(self) -> float:
        """Returns the resident memory of all its processes in megabytes."""
        return sum(map(resident, [self.server.pid, *processes(self.server.pid).values()]))

    async def _ready(self) -> None:
        url, in_a_row = f"http://127.0.0.1:{self.port}", ALL_READY if self._several else 1
        running = self.server.running
        if not await asyncio.to_thread(wait_until_ready, url, running, PATIENCE, in_a_row):
            raise RuntimeError(f"The server is not ready. Its log: {self.server.log()[-3:]}")

    def _is_back(self) -> None:
        self._away_since, self._back_at = None, time.monotonic()


def processes(pid: int) -> dict[str, int]:
    """Returns the processes that the supervisor `pid` has started: name -> process id."""
    found = {}
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has gone
            words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if ARGUMENT.encode() in words:
                found[words[-2].decode()] = int(child)
    return found


def resident(pid: int) -> float:
    """Returns the resident memory of a process in megabytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
