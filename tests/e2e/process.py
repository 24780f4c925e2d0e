"""A server in its own process, and files that hold its engine."""

from __future__ import annotations

import asyncio
import contextlib
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

from benchmarks.processes import cpu_seconds, signals_held

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
    """A file that holds the engine from `begin` to `end`. Pass its name as ENGINE_HELD (batches) or
    ENGINE_LOAD_HELD (loading)."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def __str__(self) -> str:
        return str(self._file)

    def begin(self) -> None:
        self._file.touch()

    def end(self) -> None:
        self._file.unlink()


def wait_until_ready(
    url: str, running: Callable[[], bool], seconds: float = PATIENCE, in_a_row: int = 1
) -> bool:
    """Returns whether a server becomes ready within `seconds`, while `running()` holds.

    It is ready once `/readyz` answers 200 on `in_a_row` connections one after the other. Several
    front ends learn of the engine at different moments, and take turns to accept connections.
    """
    deadline, answers = time.monotonic() + seconds, 0
    with httpx.Client(headers={"Connection": "close"}, timeout=5) as client:
        while running() and time.monotonic() < deadline:
            ready = False
            with contextlib.suppress(httpx.HTTPError):
                ready = client.get(f"{url}/readyz").status_code == 200
            answers = answers + 1 if ready else 0
            if answers == in_a_row:
                return True
            if not ready:
                time.sleep(0.02)
    return False


class Server:
    """`python *arguments`, listening on a free port; `url` is its address.

    `with Server(...)` runs it for the duration of the block. Callers of `start` must call `end`.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.started = 0.0
        """`time.monotonic()` at the start of the process."""
        self._arguments, self._environment = arguments, environment
        self._lines: queue.Queue[str] = queue.Queue()
        self._log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        """Starts the process and returns immediately."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        self.started = time.monotonic()
        with signals_held():
            self._process = subprocess.Popen(
                [sys.executable, *self._arguments],
                cwd=ROOT,
                env={**inherited, **DEFAULTS, **self._environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._reader.start()
        return self

    def end(self) -> None:
        """Kills the process if it still runs, and returns once it has ended."""
        if self._process is None:
            return
        self._process.kill()
        if self._reader.ident is not None:
            self._reader.join(PATIENCE)  # it must see the end of the output before that is closed
        self._process.communicate()

    def __enter__(self) -> Server:
        try:
            self.start()
            running = self.wait_for_log("Uvicorn running")
            address = re.search(r"http://\S+", running["message"])
            assert address is not None
            self.url = address.group()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def address(self, name: str) -> str:
        """Returns the address of another port, from the log. `name`: for example `gRPC on`."""
        messages = (str(record["message"]) for record in self.log())
        return next(message.split()[-1] for message in messages if name in message)

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "the server has not been started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_seconds(self) -> float:
        """Returns the CPU time so far, which does not depend on other work on the machine."""
        return cpu_seconds(self.pid)

    def wait_until_ready(self) -> float:
        """Returns the seconds from the start of the process to the first 200 of `/readyz`."""
        if not wait_until_ready(self.url, self.running):
            raise TimeoutError(f"The server is not ready. Its log: {self._log}")
        return time.monotonic() - self.started

    async def wait_until(self, metric: str, value: float | Callable[[], float]) -> None:
        """Waits until a metric without labels has a value. A callable is evaluated at each look."""
        async with httpx.AsyncClient() as client, asyncio.timeout(PATIENCE):
            while True:
                text = (await client.get(f"{self.url}/metrics")).text
                wanted = value() if callable(value) else value
                if f"\n{metric} {wanted:.1f}\n" in text:
                    return
                await asyncio.sleep(0.02)

    def wait_for_log(self, message: str) -> dict[str, Any]:
        """Waits for the next record whose message contains `message`."""
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
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal. Returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def processes(self) -> dict[str, int]:
        """Returns the processes that the log names: name -> id of the last one started."""
        started = [record for record in self.log() if record["message"] == "started"]
        return {record["process"]: record["pid"] for record in started}

    def log(self) -> list[dict[str, Any]]:
        """Returns all records so far."""
        return [json.loads(line) for line in self._log]

    def log_of(self, message: str) -> dict[str, Any]:
        """Returns the last record with that message."""
        return [record for record in self.log() if record["message"] == message][-1]

    def batches(self) -> list[int]:
        """Returns the sizes of the batches that a scripted engine has received."""
        return [record["size"] for record in self.log() if record["message"] == "batch"]

    def errors(self) -> str:
        """Returns standard error. The process must have ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._log.append(line)
            self._lines.put(line)
        self._lines.put("")
