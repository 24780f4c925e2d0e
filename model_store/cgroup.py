"""Cgroup: reads how many CPU cores and how much memory this process may use.

Linux limits the resources of a container with control groups (cgroups). Version 2 of control groups
has one tree of groups. Version 1 has one tree for each resource. /proc/self/cgroup contains the
paths of the groups of a process. The limits of all parents of a group apply as well. In a
container, the mounted tree may begin with the container's own group. /proc/self/cgroup may still
contain the longer path that the group has outside the container.

Sources: cgroup-v2.rst, cgroup-v1/memory.rst and sched-bwc.rst in the documentation of Linux.
"""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path("/sys/fs/cgroup")
OWN = pathlib.Path("/proc/self/cgroup")


def cores(root: pathlib.Path = ROOT, own: pathlib.Path = OWN) -> int:
    """Return the number of CPU cores that this process may use.

    The number is limited by the CPU affinity and the CPU quotas, and is rounded up.

    Args:
        root: Folder where the control groups are mounted.
        own: File with the paths of the groups of the process.
    """
    if hasattr(os, "sched_getaffinity"):
        limits = [float(len(os.sched_getaffinity(0)))]
    else:  # macOS and Windows
        limits = [float(os.cpu_count() or 1)]
    for group in _groups("cpu", root, own):
        quota = _numbers(group / "cpu.max")  # version 2: the quota and its period
        if not quota:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and min(quota) > 0:  # -1 means no quota
            limits.append(quota[0] / quota[1])
    return math.ceil(min(limits))


def memory(root: pathlib.Path = ROOT, own: pathlib.Path = OWN) -> int:
    """Return the bytes of memory that this process may use. Arguments are as in `cores`."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory", root, own):
        limits += _numbers(group / "memory.max")
        limits += _numbers(group / "memory.limit_in_bytes")
    return min(limits)


def _groups(controller: str, root: pathlib.Path, own: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folders of all groups that limit this process, in the layouts of both versions.

    Some of these folders may not exist.
    """
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
    """Return the numbers in `file`. The list is empty if `file` is missing or contains "max"."""
    try:
        return [int(number) for number in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
