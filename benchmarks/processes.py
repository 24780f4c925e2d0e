"""Starts processes, ends processes reliably, and reads the CPU times of processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

TICK = 1 / os.sysconf("SC_CLK_TCK")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TERMINATED = 128 + signal.SIGTERM
"""Exit status of a program that SIGTERM ended."""
GRACE = 15.0
"""Seconds from SIGTERM until a process that still runs is killed with SIGKILL."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the end of the block.

    A process is started just before the `try` block that ends the process. If a signal handler
    raised an exception between the start and the `try` block, the process would continue to run.
    Signal handlers run in the main thread only, so this function does nothing in other threads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda received, _: held.append(received))
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)


def exit_on_sigterm() -> None:
    """Lets SIGTERM raise SystemExit, so that `finally` blocks run and end the servers."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(*_: object) -> None:
    """Exits the program. If an event loop runs, cancels the tasks of the event loop instead.

    While an event loop runs, an exception of a signal handler might be ignored.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        sys.exit(TERMINATED)
    for task in asyncio.all_tasks(loop):
        task.cancel()


@contextmanager
def started(
    command: Sequence[str], grace: float = GRACE, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Runs a process during the block, and ends it even if the block raises.

    Args:
        command: Program and arguments.
        grace: Seconds from SIGTERM to SIGKILL. SIGTERM is sent at the end of the block. SIGKILL is
            sent if the process still runs. 0: only SIGKILL is sent.
        options: Arguments of `subprocess.Popen`.
    """
    with contextlib.ExitStack() as stack:
        with signals_held():
            process: subprocess.Popen[Any] = subprocess.Popen(command, **options)
            stack.callback(end, process, grace)
        yield process


def end(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Ends a process with SIGTERM, or with SIGKILL after `grace` seconds, and closes its pipes."""
    if process.poll() is None and grace > 0:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def end_session(leader: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Ends all processes of a session.

    Args:
        leader: First process of the session, started with `start_new_session=True`.
        grace: Seconds until the leader is killed, as in `end`.
    """
    end(leader, grace)
    while members := _session(leader.pid):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def wait_until_ended(pids: Iterable[int], seconds: float) -> bool:
    """Waits for at most `seconds` until processes have ended. Returns whether all have ended."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if not ended.poll(1000 * max(0.0, deadline - time.monotonic())):
                return False
        finally:
            os.close(pidfd)
    return True


def is_running(pid: int) -> bool:
    """Returns whether a process runs. A zombie, which has ended but is not reaped, does not run."""
    return bool(fields := _stat(pid)) and fields[0] != "Z"


def cpu_seconds(pid: int) -> float:
    """Returns the user and system CPU seconds of a process, without its child processes."""
    return sum(map(int, _fields(pid)[11:13])) * TICK


def tree(pid: int) -> dict[int, float]:
    """Returns the CPU seconds of the process `pid` and of all descendants, by process ID.

    The CPU time of a process includes the CPU time of reaped child processes.
    """
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for other, fields in _processes():
        children.setdefault(int(fields[1]), []).append(other)
        seconds[other] = sum(map(int, fields[11:15])) * TICK
    pending, members = [pid], {}
    while pending:
        member = pending.pop()
        if member in seconds:
            members[member] = seconds[member]
        pending += children.get(member, [])
    return members


def _session(leader: int) -> list[int]:
    """Returns the running processes of a session. The leader may have ended."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader and fields[0] != "Z"]


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yields the process ID and the fields of each process of the machine."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            yield int(path.name), fields


def _stat(pid: int) -> list[str]:
    """Returns the fields of a process, or an empty list if there is no such process."""
    try:
        return _fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _fields(pid: int) -> list[str]:
    """Returns the fields in /proc/PID/stat, beginning with the state; see proc_pid_stat(5)."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
