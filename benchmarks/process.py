"""A server in a process of its own, and what it spends on a request."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal.load import images
from shoal.load.generator import Generator, Job

ROOT = pathlib.Path(__file__).parent.parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
START_UP = 60.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


class Process:
    """It logs, and may say more on standard output when it is asked."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self.address = ""
        self._process = process
        self._awaited: tuple[bytes, asyncio.Future[bytes]] | None = None

    async def line(self, beginning: bytes, signal: int | None = None) -> bytes:
        """The next line with `beginning` in it, after a signal if one is given."""
        found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._awaited = beginning, found
        if signal is not None:
            self._process.send_signal(signal)
        async with asyncio.timeout(START_UP):
            return await found

    async def read(self) -> None:
        """Everything it writes, until it ends: a pipe that nobody reads would stop it."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if self._awaited is not None and self._awaited[0] in line:
                self._awaited[1].set_result(line)
                self._awaited = None
        if self._awaited is not None:
            self._awaited[1].set_exception(SystemExit("a server did not start: see above"))

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)


@asynccontextmanager
async def serving(*module: str, **settings: str) -> AsyncIterator[Process]:
    """`python -m module` that logs its address, once it answers."""
    environment = {**os.environ, "SHOAL_PORT": "0", "SHOAL_LOG_LEVEL": "info", **settings}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *module),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    process = Process(started)
    reading = asyncio.create_task(process.read())
    try:
        line = await process.line(b"running on ")
        process.address = line.decode().partition("running on ")[2].split()[0].rstrip('",')
        await _ready(process.address)
        yield process
    finally:
        if started.returncode is None:
            started.terminate()
        await started.wait()
        await reading


async def _ready(address: str) -> None:
    """Until /readyz says something else than 503: a server that has no such path is ready."""
    url = urllib.parse.urlsplit(address)
    async with asyncio.timeout(START_UP):
        while True:
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            writer.write(f"GET /readyz HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
            status = (await reader.readline()).split(b" ")[1]
            writer.close()
            if status != b"503":
                return
            await asyncio.sleep(0.05)


async def load(process: Process, path: str, raw: bool, seconds: float, connections: int) -> int:
    """Small pictures in a closed loop; how many were answered, which all must be with 200."""
    url = process.address + path
    pictures = images.made_up(32)
    split = urllib.parse.urlsplit(url)
    job = Job(
        url=url,
        requests=[images.request(split, picture, raw) for picture in pictures],
        expected=[None] * len(pictures),
        duration=seconds,
        timeout=30,
        seed=1,
        times=None,
        concurrency=connections,
    )
    outcome = await Generator(job, lambda answered, failed: None).run()
    if set(outcome.status) != {200}:
        raise SystemExit(f"{url}: answers other than 200: {set(outcome.status)}")
    return len(outcome.status)


async def cost(process: Process, path: str, raw: bool, seconds: float, connections: int) -> float:
    """CPU seconds of the server a request, under such a load."""
    before = process.cpu_seconds()
    answered = await load(process, path, raw, seconds, connections)
    return (process.cpu_seconds() - before) / answered
