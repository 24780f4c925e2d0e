"""The check that tests leave no process running."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from benchmarks.processes import is_running, started
from tests.leftovers import no_process_left

SLEEP = "import time; time.sleep(600)"
ORPHANING = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "{SLEEP}"], stdout=subprocess.DEVNULL).pid)
"""


def leave_child() -> int:
    """Starts a process and does not end it."""
    return os.posix_spawn(sys.executable, [sys.executable, "-c", SLEEP], os.environ)


def leave_orphan() -> int:
    """Starts a process whose parent ends."""
    command = [sys.executable, "-c", ORPHANING]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.parametrize("leave", [leave_child, leave_orphan])
def test_leftovers_are_named_and_ended(leave: Callable[[], int]) -> None:
    """A child or an orphan that still runs is named in the error and killed."""
    pids = []

    def run() -> None:
        with no_process_left(grace=0):
            pids.append(leave())

    with pytest.raises(AssertionError, match="sleep"):
        run()
    with suppress(ChildProcessError):  # an orphan is reaped by another process
        os.waitpid(pids[0], 0)
    assert not is_running(pids[0])


def test_leftovers_do_not_include_processes_that_ended() -> None:
    """A process that ends within the block raises no error."""
    with no_process_left(grace=0), started([sys.executable, "-c", SLEEP], grace=0):
        pass
