"""Starts processes that end with the block that started them, and reads their CPU times."""

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
"""Exit status after SIGTERM."""
GRACE = 15.0
"""Seconds after SIGTERM until a process is killed."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Delays SIGINT and SIGTERM to the end of the block.

    A handler that raises between the start of a process and the `try` that ends it would leave the
    process running. Handlers run in the main thread only; in other threads this does nothing.
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
    """Makes SIGTERM end this program so that `finally` blocks run and its servers end."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(*_: object) -> None:
    """Cancels the tasks of a running event loop, where an exception would get lost."""
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
    """Runs a process for the duration of the block, whatever happens in it.

    Args:
        command: The program and its arguments.
        grace: Seconds between SIGTERM, which is sent at the end of the block if the process still
            runs, and SIGKILL. 0: kill immediately.
        options: Passed on to `subprocess.Popen`.
    """
    with contextlib.ExitStack() as stack:
        with signals_held():
            process: subprocess.Popen[Any] = subprocess.Popen(command, **options)
            stack.callback(end, process, grace)
        yield process


def end(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Ends a process by SIGTERM, or by SIGKILL after `grace` seconds, and closes its pipes."""
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
    """Ends a process started with `start_new_session=True` and all processes of its session."""
    end(leader, grace)
    while members := _session(leader.pid):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def wait_until_ended(pids: Iterable[int], seconds: float) -> bool:
    """Returns whether all of these processes end within `seconds`."""
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
    """Returns whether a process exists and has not ended; one that awaits reaping has ended."""
    return bool(fields := _stat(pid)) and fields[0] != "Z"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads, without its children."""
    return sum(map(int, _fields(pid)[11:13])) * TICK


def tree(pid: int) -> dict[int, float]:
    """The running processes of the tree that `pid` heads: process id -> CPU seconds.

    The times include those of children that ended and were reaped.
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
    """The running processes of a session, also after its leader has ended."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader and fields[0] != "Z"]


def _processes() -> Iterator[tuple[int, list[str]]]:
    """All processes of the machine with their fields."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(path.name)):
            yield int(path.name), fields


def _stat(pid: int) -> list[str]:
    """The fields of a process, or an empty list if there is no such process."""
    try:
        return _fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _fields(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the state on."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
