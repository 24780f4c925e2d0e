"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
import pathlib

QUOTA = pathlib.Path("/sys/fs/cgroup/cpu.max")
"""Of a container, as it sees itself: control groups v2, "cpu.max" in Linux's cgroup-v2.rst."""


def cores(quota: pathlib.Path = QUOTA) -> int:
    """Those that it may run on, or as many as its container has the time of, if that is less;
    part of one counts as one."""
    mine = len(os.sched_getaffinity(0))
    try:
        most, period = quota.read_text(encoding="ascii").split()
        return min(mine, math.ceil(int(most) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return mine
