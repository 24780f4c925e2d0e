"""How many CPU cores and how much memory this process may use: the machine's, or its container's.

Control groups limit a container. Version 2 has one tree of groups, version 1 one for each resource;
a process' own groups are in /proc/self/cgroup, and the limits of those above hold for it, too. In a
container the tree may begin with the container's own group, whatever /proc/self/cgroup says.

Sources: cgroup-v2.rst and cgroup-v1/memory.rst of Linux, sched-bwc.rst for CPU quotas.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path("/sys/fs/cgroup")
OWN = pathlib.Path("/proc/self/cgroup")


def cores(root: pathlib.Path = ROOT, own: pathlib.Path = OWN) -> int:
    """CPU cores that this process may run on, or as many as it has the time of if that is less;
    part of one counts as one. `root` and `own`: where the groups and their names are."""
    found = [float(len(os.sched_getaffinity(0)))]
    for group in _groups("cpu", root, own):
        quota = _numbers(group / "cpu.max")  # version 2: the quota and its period
        if not quota:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:  # -1: no quota
            found.append(quota[0] / quota[1])
    return math.ceil(min(found))


def memory(root: pathlib.Path = ROOT, own: pathlib.Path = OWN) -> int:
    """Bytes that this process may use. `root` and `own`: where the groups and their names are."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root, own):
        found += _numbers(group / "memory.max")
        found += _numbers(group / "memory.limit_in_bytes")
    return min(found)


def _groups(controller: str, root: pathlib.Path, own: pathlib.Path) -> Iterator[pathlib.Path]:
    """The groups that limit this process, in both versions; some may not exist."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    for line in ["0::/", f"0:{controller}:/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = (root / controller if controllers else root) / path.lstrip("/")
        yield group
        yield from (above for above in group.parents if root in above.parents)


def _numbers(file: pathlib.Path) -> list[int]:
    """Those in `file`; none where it is not there, or says "max"."""
    try:
        return [int(number) for number in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
