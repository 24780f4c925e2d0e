"""Finds processes that tests started and left running."""

from __future__ import annotations

import os
import pathlib
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from benchmarks.processes import is_running, wait_until_ended

VARIABLE = "TEST_SESSION"
"""Environment variable that all processes of a session inherit."""
GRACE = 10.0
"""Seconds for processes that are about to end."""


@contextmanager
def no_process_left(grace: float = GRACE) -> Iterator[None]:
    """Ends the processes that the block started and left running, and raises if there are any.

    Raises:
        AssertionError: Processes still ran `grace` seconds after the block; names their commands.
    """
    mark, outer = uuid.uuid4().hex, os.environ.get(VARIABLE)
    running_before = _descendants(mark)
    os.environ[VARIABLE] = mark
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if outer is not None:
            os.environ[VARIABLE] = outer
    if wait_until_ended(_descendants(mark) - running_before, grace):
        return
    left = {pid: _command(pid) for pid in _descendants(mark) - running_before}
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_ended(left, GRACE)
    assert not left, f"The tests left these processes running: {left}"


def _descendants(mark: str) -> set[int]:
    """Running processes with `mark` in their environment, and the children of this process."""
    descendants = set()
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            marked = f"{VARIABLE}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            child = f"\nPPid:\t{os.getpid()}\n" in (folder / "status").read_text()
            if (marked or child) and is_running(pid) and not _is_helper(pid):
                descendants.add(pid)
    return descendants


def _is_helper(pid: int) -> bool:
    """Whether it is multiprocessing's resource tracker, which ends with the process it serves."""
    return "multiprocessing.resource_tracker" in _command(pid)


def _command(pid: int) -> str:
    with suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
