"""Cgroup: the number of CPU cores and the memory that this process may use.

A container is limited by control groups. Version 2 has one tree of groups, version 1 has one for
each resource. /proc/self/cgroup names the groups of a process. The limits of their parents apply as
well. In a container the visible tree may begin with the container's own group, even if
/proc/self/cgroup contains a longer path.

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
    """Number of CPU cores that this process may use, by affinity and CPU quota, rounded up.

    Args:
        root: Where the control groups are mounted.
        own: The file that names the groups of the process.
    """
    limits = [float(len(os.sched_getaffinity(0)))]
    for group in _groups("cpu", root, own):
        quota = _numbers(group / "cpu.max")  # version 2: the quota and its period
        if not quota:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:  # -1: no quota
            limits.append(quota[0] / quota[1])
    return math.ceil(min(limits))


def memory(root: pathlib.Path = ROOT, own: pathlib.Path = OWN) -> int:
    """Bytes of memory that this process may use. Arguments as in `cores`."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root, own):
        limits += _numbers(group / "memory.max")
        limits += _numbers(group / "memory.limit_in_bytes")
    return min(limits)


def _groups(controller: str, root: pathlib.Path, own: pathlib.Path) -> Iterator[pathlib.Path]:
    """The groups that limit this process, of both versions. Some may not exist."""
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
        yield from (parent for parent in group.parents if root in parent.parents)


def _numbers(file: pathlib.Path) -> list[int]:
    """The numbers in `file`; none if it is missing or contains "max"."""
    try:
        return [int(number) for number in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
