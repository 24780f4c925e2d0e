"""One server after the other at one port, and what the system says of it."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import socket
import time

import httpx

from tests.e2e.process import PATIENCE, Server


class Restarted:
    """A server that may be killed and comes back at the same port."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = arguments
        self._environment = environment | {"SHOAL_PORT": str(self.port)}
        self._server: Server | None = None
        self._away_since: float | None = time.monotonic()
        self._back_at = 0.0
        self.kills = 0

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def was_away(self, since: float) -> bool:
        """At any time from `since` on?"""
        return self._away_since is not None or self._back_at > since

    async def start(self) -> None:
        """Returns once it is ready."""
        self._server = Server(*self._arguments, **self._environment)
        end = time.monotonic() + PATIENCE
        async with httpx.AsyncClient() as client:
            while time.monotonic() < end and self._server.running():
                try:
                    url = f"http://127.0.0.1:{self.port}/readyz"
                    if (await client.get(url)).status_code == 200:
                        self._away_since, self._back_at = None, time.monotonic()
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)
        raise RuntimeError(f"the server does not start: {self._server.log()[-3:]}")

    async def kill(self) -> None:
        """As kill -9 does it."""
        self.kills += 1
        self._away_since = time.monotonic()
        self.server.send(signal.SIGKILL)
        await asyncio.to_thread(self.server.wait)

    async def stop(self) -> int:
        """By SIGTERM; the exit status."""
        self._away_since = time.monotonic()
        return await asyncio.to_thread(self.server.stop)

    def end(self) -> None:
        """Whatever state it is in."""
        if self._server is not None:
            self._server.__exit__(None, None, None)


def resident(pid: int) -> float:
    """Megabytes."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
