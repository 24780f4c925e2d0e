"""Starts servers, measures the CPU time of servers, and ends all processes of servers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from benchmarks.processes import end_session, signals_held, tree

ROOT = pathlib.Path(__file__).parent.parent
PYTHON = str(pathlib.Path(sys.executable).absolute())
START_TIMEOUT = 60.0
"""Maximum number of seconds from the start of a server to its first response."""


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: pathlib.Path) -> None:
        """Describes a server that `serving` has started.

        Args:
            process: First process of the server.
            port: Port on 127.0.0.1 that the server listens on.
            log: File with the output of the server.
        """
        self.address = f"http://127.0.0.1:{port}"
        self.port = port
        self.pid = process.pid
        self.process = process
        self._log = log

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds of all processes of the server, including ended processes."""
        return sum(tree(self.pid).values())

    def wait_for_port(self, seconds: float) -> bool:
        """Waits for at most `seconds` until the server listens. Returns whether it listens."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return True
            time.sleep(0.01)
        return False

    def signal(self, number: int, beginning: str) -> str:
        """Sends a signal, and returns the next line of output that starts with `beginning`.

        Args:
            number: Number of the signal.
            beginning: First characters of the line.

        Raises:
            RuntimeError: The server writes no such line within `START_TIMEOUT` seconds.
        """
        with self._log.open(errors="replace") as output:
            output.seek(0, os.SEEK_END)
            self.process.send_signal(number)
            deadline = time.monotonic() + START_TIMEOUT
            line = ""
            while time.monotonic() < deadline:
                line += output.readline()
                if not line.endswith("\n"):  # the line is not complete yet
                    time.sleep(0.005)
                elif line.startswith(beginning):
                    return line
                else:
                    line = ""
        raise RuntimeError(f"The server did not write a line that starts with {beginning}")


@contextmanager
def serving(
    command: Sequence[str],
    log: pathlib.Path,
    environment: Mapping[str, str] | None = None,
    folder: pathlib.Path = ROOT,
) -> Iterator[Server]:
    """Runs a server during the block, and ends all processes of the server after the block.

    Args:
        command: Program and arguments. The text `{port}` in an argument is replaced by the port.
        log: File for the output of the server.
        environment: Additional environment variables. None: no variables are added. PORT and
            SHOAL_PORT are always set to the port.
        folder: Working directory. Python also imports modules from this directory.

    Yields:
        The server, which may not be ready yet.
    """
    port = _free_port()
    variables = {
        **os.environ,
        "PORT": str(port),
        "SHOAL_PORT": str(port),
        "PYTHONPATH": str(folder),
        **(environment or {}),
    }
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        with signals_held():
            process = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in command],
                cwd=folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(end_session, process)
        yield Server(process, port, log)


def module(*arguments: str) -> tuple[str, ...]:
    """Returns the command that runs a Python module with this interpreter."""
    return PYTHON, "-m", *arguments


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
