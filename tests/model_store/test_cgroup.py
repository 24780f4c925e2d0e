"""Cgroup: the number of cores and the memory of the machine or the container."""

from __future__ import annotations

import pathlib

import pytest

from model_store.cgroup import cores, memory

MACHINE = 4096 * 1_000_000
MIB = 2**20


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(
        "os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1_000_000}.__getitem__
    )


def tree(root: pathlib.Path, files: dict[str, str]) -> tuple[pathlib.Path, pathlib.Path]:
    """Control groups below `root`, and the file that names this process' own."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, 8),
        ({"cgroup/cpu.max": "max 100000\n"}, 8),
        ({"cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"cgroup/cpu.max": "6400000 100000\n"}, 8),
        ({"cgroup/cpu.max": ""}, 8),
        ({"cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cgroup/cpu/cpu.cfs_quota_us": "300000", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"own": "0::/pod/one", "cgroup/pod/one/cpu.max": "100000 100000"}, 1),
        ({"own": "0::/pod/one", "cgroup/pod/cpu.max": "200000 100000"}, 2),
        (
            {
                "own": "3:cpuset:/other\n2:cpu,cpuacct:/pod",
                "cgroup/cpu/pod/cpu.cfs_quota_us": "200000",
                "cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            2,
        ),
    ],
)
def test_cores_is_the_minimum_of_all_limits(
    tmp_path: pathlib.Path, files: dict[str, str], found: int
) -> None:
    """The affinity, and the quotas of the process' groups and their parents, in both versions."""
    assert cores(*tree(tmp_path, files)) == found


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, MACHINE),
        ({"cgroup/memory.max": "max\n"}, MACHINE),
        ({"cgroup/memory.max": "1610612736\n"}, 1536 * MIB),
        ({"cgroup/memory.max": f"{2 * MACHINE}\n"}, MACHINE),
        ({"cgroup/memory.max": ""}, MACHINE),
        ({"cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ({"cgroup/memory/memory.limit_in_bytes": "1610612736"}, 1536 * MIB),
        ({"own": "0::/pod/one", "cgroup/pod/one/memory.max": str(512 * MIB)}, 512 * MIB),
        ({"own": "0::/pod/one", "cgroup/pod/memory.max": str(512 * MIB)}, 512 * MIB),
        (
            {
                "own": "4:memory:/pod/one\n0::/",
                "cgroup/memory/pod/one/memory.limit_in_bytes": str(600 * MIB),
                "cgroup/memory/pod/memory.limit_in_bytes": str(700 * MIB),
            },
            600 * MIB,
        ),
        ({"own": "4:memory:/docker/abc", "cgroup/memory.max": "max"}, MACHINE),
    ],
)
def test_memory_is_the_minimum_of_all_limits(
    tmp_path: pathlib.Path, files: dict[str, str], found: int
) -> None:
    """The machine's memory, and the limits of the process' groups and their parents, in both
    versions."""
    assert memory(*tree(tmp_path, files)) == found


def test_cores_without_affinity(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without CPU affinity, such as macOS, all cores of the machine count."""
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores(tmp_path, tmp_path / "own") == 6
