"""One server after the other at one port, and what the system says of it."""

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
from service.workers.supervisor import ENGINE
from tests.e2e.process import PATIENCE, Server, wait_until_ready

ALL_READY = 12
"""Answers in a row of as many connections after which none of several front ends is left out."""


class Restarted:
    """A service that may be killed, as a whole or one of its processes, and comes back at the same
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
        """At any time from `since` on, as a whole or for some of its connections?"""
        return self._away_since is not None or self._back_at > since

    async def start(self) -> None:
        """Returns once it is ready."""
        self._server = Server(*self._arguments, **self._environment).start()
        await self._ready()
        self._is_back()

    async def kill(self) -> None:
        """The whole, as by kill -9, and until nothing is left of it."""
        self.kills["all of it"] += 1
        self._away_since = time.monotonic()
        others = processes(self.server.pid).values()
        self.server.send(signal.SIGKILL)
        await asyncio.to_thread(self.server.wait)
        await asyncio.to_thread(wait_until_ended, others, PATIENCE)

    async def kill_one(self, name: str) -> None:
        """One of several processes, until another has taken its place. No client loses its
        connection by the death of the engine's."""
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
        """By SIGTERM; the exit status."""
        self._away_since = time.monotonic()
        return await asyncio.to_thread(self.server.stop)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._server is not None:
            self._server.end()

    def resident(self) -> float:
        """Megabytes, of all its processes."""
        return sum(map(resident, [self.server.pid, *processes(self.server.pid).values()]))

    async def _ready(self) -> None:
        url, in_a_row = f"http://127.0.0.1:{self.port}", ALL_READY if self._several else 1
        running = self.server.running
        if not await asyncio.to_thread(wait_until_ready, url, running, PATIENCE, in_a_row):
            raise RuntimeError(f"The server is not ready. Its log: {self.server.log()[-3:]}")

    def _is_back(self) -> None:
        self._away_since, self._back_at = None, time.monotonic()


def processes(pid: int) -> dict[str, int]:
    """Those that the supervisor `pid` has started: name -> id, as the system knows them."""
    found = {}
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has gone
            words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"service.workers" in words:
                found[words[-2].decode()] = int(child)
    return found


def resident(pid: int) -> float:
    """Megabytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
