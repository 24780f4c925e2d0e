"""Who takes part in `make bench`, how each is started, and what it takes until it is gone.

A server is started by its user's command in the environment of its own, watched by the CPU time
that it and all its children take, and stopped with all of them, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).parent.parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
GRACE = 15.0
"""Seconds in which a server must have stopped."""


@dataclass(frozen=True)
class Contestant:
    """`{port}` in its command is the port; `raw`: which bodies it takes, raw images and forms."""

    name: str
    command: Sequence[str]
    raw: tuple[bool, ...]
    package: str | None = None
    """Whose version to tell."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> str:
        """Of its environment."""
        return str(ROOT / self.command[0])

    @property
    def set_up(self) -> bool:
        return pathlib.Path(self.python).exists()

    def version(self) -> str:
        if self.package is None:
            return ""
        ask = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        python = pathlib.Path(self.python).parent / "python"
        told = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
        return f"{self.package} {told.stdout.strip()}"


OURS = str(pathlib.Path(sys.executable).absolute())
FLASK = ".bench/flask/bin"
SHOAL = "Shoal"
INT8 = "Shoal in int8"
TUTORIAL = "the tutorial's Flask"
UNBATCHED = "FastAPI, no batching"
MOSEC = "Mosec"
GUNICORN = (
    f"{FLASK}/gunicorn",
    "benchmarks.baselines.flask_once:app",
    "--workers=2",
    "--worker-class=sync",
    "--bind=127.0.0.1:{port}",
    "--log-level=warning",
)
CONTESTANTS = (
    Contestant(UNBATCHED, (OURS, "-m", "benchmarks.baselines.fastapi_alone"), (False,), "fastapi"),
    Contestant(
        MOSEC,
        (
            ".bench/mosec/bin/python",
            "benchmarks/rivals/mosec_server.py",
            "--port={port}",
            "--address=127.0.0.1",
            "--timeout=30000",
            "--log-level=warning",
        ),
        (True,),
        "mosec",
    ),
    *(
        Contestant(
            name,
            (OURS, "-m", "service"),
            (True, False),
            None,
            {"SHOAL_PRECISION": precision, "SHOAL_LOG_LEVEL": "warning"},
        )
        for name, precision in ((SHOAL, "fp32"), (INT8, "int8"))
    ),
    Contestant(
        TUTORIAL, (f"{FLASK}/python", "-m", "benchmarks.baselines.tutorial"), (False,), "flask"
    ),
    Contestant("Flask, gunicorn", GUNICORN, (False,), "gunicorn"),
    Contestant(
        "LitServe",
        (".bench/litserve/bin/python", "-m", "benchmarks.rivals.litserve_server"),
        (False,),
        "litserve",
    ),
    Contestant(
        "BentoML",
        (
            ".bench/bentoml/bin/bentoml",
            "serve",
            "benchmarks.rivals.bentoml_server:Pictures",
            "--port={port}",
            "--host=127.0.0.1",
        ),
        (False,),
        "bentoml",
        {
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_CONFIG_OPTIONS": "services.logging.access.enabled=false",
        },
    ),
)
"""First those whose maximum says at which rates the others are measured. Nobody logs requests."""


class Server:
    """A running contestant."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/predict"
        self.port = port
        self.pid = process.pid
        self._process = process

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def cpu_seconds(self) -> float:
        """User and system time of the process and of all that came from it."""
        return sum(seconds for _, seconds in tree(self.pid))

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


@contextmanager
def serving(contestant: Contestant, log: pathlib.Path) -> Iterator[Server]:
    """A fresh server that has not answered yet; on the way out it and its children are gone."""
    port = _free_port()
    environment = {
        **os.environ,
        **contestant.environment,
        "PORT": str(port),
        "SHOAL_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    command = [part.format(port=port) for part in contestant.command]
    command[0] = contestant.python
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Server(process, port)
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            while family := _session(process.pid):  # whatever did not go with it, or would not
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.poll()
                time.sleep(0.02)
            process.wait()


def tree(pid: int) -> list[tuple[int, float]]:
    """The process and all its descendants, each with its CPU seconds and its dead children's."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for found, fields in _processes():
        children.setdefault(int(fields[1]), []).append(found)
        seconds[found] = sum(map(int, fields[11:15])) * TICK
    family, known = [pid], []
    while family:
        one = family.pop()
        if one in seconds:
            known.append((one, seconds[one]))
        family += children.get(one, [])
    return known


def _session(leader: int) -> list[int]:
    """All processes that were started by a session's leader, also where it has died."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader and fields[0] != "Z"]


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Each process of the machine, and what proc(5) tells of it from its state on."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()


def wait_for_port(server: Server, seconds: float) -> bool:
    """Does anybody listen, within that time?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.running:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            return True
        time.sleep(0.05)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
