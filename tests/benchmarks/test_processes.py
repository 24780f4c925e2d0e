"""Processes that benchmarks and tests start: their CPU time, and that all of them end."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.competitors import SHOAL
from benchmarks.processes import (
    is_running,
    signals_held,
    started,
    tree,
    wait_until_ended,
)
from benchmarks.servers import PYTHON, ROOT, Server, serving

PATIENCE = 60.0
WORK = 0.4
"""CPU seconds."""
BUSY = f"end = time.process_time() + {WORK}\nwhile time.process_time() < end: pass"
FAMILY = f"""
import os, subprocess, sys, time
subprocess.run([sys.executable, "-c", '''import time\n{BUSY}'''])
child = subprocess.Popen(
    [sys.executable, "-c", '''import time\n{BUSY}\nprint(flush=True)\ntime.sleep(600)'''],
    stdout=subprocess.PIPE,
)
child.stdout.readline()
{BUSY}
print("done", flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); "
child += "sys = __import__('sys'); sys.stdout.flush(); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
print("done", flush=True)
time.sleep(600)
"""


def wait_for_output(server: Server, log: pathlib.Path) -> None:
    """Waits until a program has written `done`."""
    with log.open() as output:
        while "done" not in output.read():
            assert is_running(server.pid)
            output.seek(0)
            time.sleep(0.01)


@pytest.mark.slow
def test_server_cpu_time_is_that_of_all_its_processes(tmp_path: pathlib.Path) -> None:
    """The CPU time includes children, running and ended; all end when the measurement fails."""
    family: dict[int, float] = {}

    def measure() -> None:
        nonlocal family
        with serving([PYTHON, "-c", FAMILY], tmp_path / "log") as server:
            wait_for_output(server, tmp_path / "log")
            family = tree(server.pid)
            assert server.cpu_seconds() >= sum(family.values()) >= 3 * (WORK - 0.02)
            assert len(family) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    assert not any(map(is_running, family))


@pytest.mark.slow
def test_serving_ends_children_that_ignore_sigterm(tmp_path: pathlib.Path) -> None:
    """Children that outlive their parent are killed at the end of the block."""
    with serving([PYTHON, "-c", STUBBORN], tmp_path / "log") as server:
        wait_for_output(server, tmp_path / "log")
        family = tree(server.pid)
    assert len(family) == 2
    assert not any(map(is_running, family))


@pytest.mark.slow
def test_compare_ends_its_servers_on_sigterm(tmp_path: pathlib.Path) -> None:
    """SIGTERM to a comparison ends its servers and results in status 143."""
    command = [sys.executable, "-m", "benchmarks.compare", "--only", SHOAL, "--out", str(tmp_path)]
    with started(command, cwd=ROOT) as process:
        while len(family := tree(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(PATIENCE) == 143
    assert wait_until_ended(family, PATIENCE)


def test_signals_are_held_until_the_end_of_the_block() -> None:
    """A signal that arrives while a process is started is handled only after the block."""
    handled = []
    before = signal.signal(signal.SIGTERM, lambda *_: handled.append("handled"))
    try:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert handled == []
        assert handled == ["handled"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_started_ends_its_process_when_a_signal_raises_during_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler that raises right after the start still leaves no process running."""
    processes: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"])
            processes.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(*_: object) -> None:
        raise InterruptedError

    def run() -> None:
        with started([], grace=0):
            pytest.fail("the signal was lost")

    before = signal.signal(signal.SIGTERM, interrupt)
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    try:
        with pytest.raises(InterruptedError):
            run()
        (process,) = processes
        assert not is_running(process.pid)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in processes:
            process.kill()
            process.wait()
