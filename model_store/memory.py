"""How much memory this process may use."""

from __future__ import annotations

import os
import pathlib

LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
"""Of a container, as it sees itself: control groups v2, "memory.max" in Linux's cgroup-v2.rst."""


def memory(limit: pathlib.Path = LIMIT) -> int:
    """Bytes: the machine's, or as many as its container may use, if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(limit.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
