"""A server in a process of its own, for as long as a `with` lasts; and what holds its engine."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import httpx

from benchmarks.process import cpu_seconds

ROOT = pathlib.Path(__file__).parents[2]
REAL = ("-m", "service")
SCRIPTED = ("-m", "tests.e2e.scripted")
PATIENCE = 60.0
DEFAULTS = {
    "SHOAL_PORT": "0",
    "SHOAL_LOG_FORMAT": "json",
    "SHOAL_ALLOWED_HOSTS": "shoal",  # the Host of raw requests
}


class Hold:
    """From `begin` to `end`, what waits for it does not end: ENGINE_HELD or ENGINE_LOAD_HELD are to
    be its name."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def begin(self) -> None:
        self._file.touch()

    def end(self) -> None:
        self._file.unlink()


class Server:
    """`python *arguments`, listening on a free port; `url` is where."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**inherited, **DEFAULTS, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        running = self.wait_for_log("Uvicorn running")
        address = re.search(r"http://\S+", running["message"])
        assert address is not None
        self.url = address.group()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._reader.join(PATIENCE)  # who reads is to see the end before the file is closed
        self._process.communicate()

    def address(self, name: str) -> str:
        """Where a port beside the main one was opened, as the log says: `gRPC on`."""
        messages = (str(record["message"]) for record in self.log())
        return next(message.split()[-1] for message in messages if name in message)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_seconds(self) -> float:
        """What the process has spent so far: unlike time, not more on a machine with other work."""
        return cpu_seconds(self.pid)

    def wait_until_ready(self) -> float:
        """Seconds from the start of the process to the first 200 of /readyz."""
        while time.monotonic() < self.started + PATIENCE:
            if httpx.get(f"{self.url}/readyz").status_code == 200:
                return time.monotonic() - self.started
            time.sleep(0.02)
        raise TimeoutError(f"not ready; the log says: {self._log}")

    async def wait_until(self, metric: str, value: float | Callable[[], float]) -> None:
        """Until `/metrics` says `value`, or what it is by then, for a metric without labels."""
        async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE):
            while True:
                text = (await client.get(f"{self.url}/metrics")).text
                wanted = value() if callable(value) else value
                if f"\n{metric} {wanted:.1f}\n" in text:
                    return
                await asyncio.sleep(0.02)

    def wait_for_log(self, message: str) -> dict[str, Any]:
        """The next record whose message contains `message`."""
        while True:
            try:
                line = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise TimeoutError(f"no {message!r} in the log: {self._log}") from None
            assert line, f"the process ended: {self._log}"
            record: dict[str, Any] = json.loads(line)
            if message in record["message"]:
                return record

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self._process.send_signal(number)
        return self.wait()

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def processes(self) -> dict[str, int]:
        """Of several that serve: name -> id of the last that was started."""
        started = [record for record in self.log() if record["message"] == "started"]
        return {record["process"]: record["pid"] for record in started}

    def log(self) -> list[dict[str, Any]]:
        """All records so far."""
        return [json.loads(line) for line in self._log]

    def log_of(self, message: str) -> dict[str, Any]:
        """The last record with that message."""
        return [record for record in self.log() if record["message"] == message][-1]

    def batches(self) -> list[int]:
        """Sizes of the batches that a scripted engine was handed so far."""
        return [record["size"] for record in self.log() if record["message"] == "batch"]

    def errors(self) -> str:
        """Standard error, once the process has ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._log.append(line)
            self._lines.put(line)
        self._lines.put("")
