"""A process of the service as the supervisor sees it, and the policy by which it is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys

from service.workers.bootstrap import Bootstrap

ARGUMENT = "--worker"
"""Argument of `python -m service`, before the name of the process. For internal use."""
STEADY_SECONDS = 60.0
"""Lifetime of a process after which its earlier restarts are forgotten."""
FIRST_PAUSE, MAX_PAUSE = 0.5, 10.0
"""Seconds before the second restart in a row, and the maximum before any restart."""
MAX_RESTARTS = 6
"""Maximum number of restarts in a row. A process that needs more has a permanent fault."""


class WorkerProcess:
    """A front end or the engine process. It can be started again when it has ended."""

    def __init__(self, name: str, bootstrap: Bootstrap) -> None:
        """
        Args:
            name: Name in logs and metrics, and the argument that the process is started with.
            bootstrap: What the process receives when it starts.
        """
        self.name = name
        self.bootstrap = bootstrap
        self.process: asyncio.subprocess.Process | None = None
        """The process that was started last. None before the first start."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> asyncio.subprocess.Process:
        """Start the process. Raises OSError when the system cannot."""
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", ARGUMENT, self.name),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self.bootstrap.folder},
            pass_fds=self.bootstrap.sockets,
            start_new_session=True,
            preexec_fn=_ignore_sighup,  # safe: other threads here only wait for child processes
        )
        self.send_line(self.bootstrap.line())
        return process

    def send_line(self, line: bytes) -> None:
        """Send a line over the pipe to the running process."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(line)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal. Does nothing when the process has ended."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class RestartPolicy:
    """Decides when one process is restarted. Pure: callers pass the current time, in seconds.

    The first restart is immediate. Each further restart in a row waits twice as long as the one
    before. A process that has lived for `STEADY_SECONDS` starts over.
    """

    def __init__(self) -> None:
        self._restarts = 0
        self._started = 0.0

    def started(self, now: float) -> None:
        """Record that the process was started."""
        self._started = now

    def ended(self, now: float) -> float | None:
        """Seconds to wait before the next start. None: do not restart the process."""
        if now - self._started >= STEADY_SECONDS:
            self._restarts = 0
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            return None
        if self._restarts == 1:
            return 0.0
        return min(FIRST_PAUSE * (1 << (self._restarts - 2)), MAX_PAUSE)


def _ignore_sighup() -> None:
    """Ignore SIGHUP from the first moment of the process: by default it ends a process, and this
    one has nothing to reload yet."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
