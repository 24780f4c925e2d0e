"""Starts the processes of the service, and decides when an ended process is restarted."""

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
"""If a process has run for this number of seconds, its earlier restarts are no longer counted."""
FIRST_PAUSE, MAX_PAUSE = 0.5, 10.0
"""Pause before the second restart in a row, and maximum pause before a restart, in seconds."""
MAX_RESTARTS = 6
"""Maximum number of restarts in a row. If the process then ends again, it is not restarted."""


class WorkerProcess:
    """A front end (a process that serves HTTP) or the engine process, which can be restarted."""

    def __init__(self, name: str, bootstrap: Bootstrap) -> None:
        """
        Args:
            name: Name of the process in logs, in metrics and on its command line.
            bootstrap: Data that the process receives at its start.
        """
        self.name = name
        self.bootstrap = bootstrap
        self.process: asyncio.subprocess.Process | None = None
        """The current or latest process. None before the first start."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> asyncio.subprocess.Process:
        """Start the process. Raises OSError if the system cannot start a process."""
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", ARGUMENT, self.name),
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self.bootstrap.folder},
            pass_fds=self.bootstrap.sockets,
            start_new_session=True,
            preexec_fn=_ignore_sighup,  # safe: other threads only wait for processes
        )
        self.send_line(self.bootstrap.line())
        return process

    def send_line(self, line: bytes) -> None:
        """Send a line to the standard input of the running process."""
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(line)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process. Has no effect if the process has ended."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class RestartPolicy:
    """Decides when one process is restarted. Callers pass the time in seconds.

    The first restart is immediate. The pause before each further restart in a row is twice as long
    as the previous pause. After a process has run for `STEADY_SECONDS`, its earlier restarts are no
    longer counted.
    """

    def __init__(self) -> None:
        self._restarts = 0
        self._started = 0.0

    def started(self, now: float) -> None:
        """Record that the process was started."""
        self._started = now

    def ended(self, now: float) -> float | None:
        """Record that the process has ended.

        Returns the number of seconds to wait before the restart, or None if the process must not
        be restarted.
        """
        if now - self._started >= STEADY_SECONDS:
            self._restarts = 0
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            return None
        if self._restarts == 1:
            return 0.0
        return min(FIRST_PAUSE * (1 << (self._restarts - 2)), MAX_PAUSE)


def _ignore_sighup() -> None:
    """Ignore SIGHUP until the process can handle the signal. The default action would end the
    process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
