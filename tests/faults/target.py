"""A real server in a process group with limited memory, and what it costs.

The group is a cgroup (v1 or v2) if this process may create one, as root usually may. Otherwise
memory is not limited, and costs are summed over the processes of the server. `Target.group` says
which applies.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import TracebackType

from benchmarks.processes import tree, wait_until_ended
from tests.e2e.process import PATIENCE, Server, wait_until_ready

MEBIBYTE = 2**20
LIMIT = 1536
"""MiB: the memory limit in the Kubernetes manifests."""
CGROUPS = pathlib.Path("/sys/fs/cgroup")
TICK = 1 / os.sysconf("SC_CLK_TCK")
_numbers = itertools.count(1)
_INTO = """
import os, sys
for file in sys.argv[1].split(","):
    if file:
        open(file, "w").write(str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Group:
    """A process group of at most `limit` MiB. Raises OSError if none can be created."""

    name: str

    def join(self) -> list[pathlib.Path]:
        """Returns files to which a process writes its id to join the group."""
        raise NotImplementedError

    def memory(self) -> float:
        """Returns the MiB in use."""
        raise NotImplementedError

    def peak(self) -> float:
        """Returns the maximum MiB in use since `reset_peak`."""
        raise NotImplementedError

    def reset_peak(self) -> None:
        raise NotImplementedError

    def cpu_seconds(self) -> float:
        """Returns the CPU time of all members so far, including those that ended."""
        raise NotImplementedError

    def killed(self) -> int:
        """Returns the number of processes that the kernel killed because of the limit."""
        raise NotImplementedError

    def close(self) -> None:
        """Removes the group. Its processes must have ended."""


class GroupV1(Group):
    name = "cgroup v1"

    def __init__(self, limit: int) -> None:
        name = f"shoal-{os.getpid()}-{next(_numbers)}"
        self._memory, self._cpu = (CGROUPS / kind / name for kind in ("memory", "cpuacct"))
        self._memory.mkdir()
        self._cpu.mkdir()
        (self._memory / "memory.limit_in_bytes").write_text(str(limit * MEBIBYTE))
        with contextlib.suppress(OSError):  # a kernel without swap accounting
            (self._memory / "memory.memsw.limit_in_bytes").write_text(str(limit * MEBIBYTE))

    def join(self) -> list[pathlib.Path]:
        return [self._memory / "cgroup.procs", self._cpu / "cgroup.procs"]

    def memory(self) -> float:
        return int((self._memory / "memory.usage_in_bytes").read_text()) / MEBIBYTE

    def peak(self) -> float:
        return int((self._memory / "memory.max_usage_in_bytes").read_text()) / MEBIBYTE

    def reset_peak(self) -> None:
        (self._memory / "memory.max_usage_in_bytes").write_text("0")

    def cpu_seconds(self) -> float:
        return int((self._cpu / "cpuacct.usage").read_text()) / 1e9

    def killed(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")

    def close(self) -> None:
        _remove(self._memory, self._cpu)


class GroupV2(Group):
    name = "cgroup v2"

    def __init__(self, limit: int) -> None:
        if "memory" not in (CGROUPS / "cgroup.subtree_control").read_text().split():
            raise OSError("cgroup v2 without the memory controller")
        self._folder = CGROUPS / f"shoal-{os.getpid()}-{next(_numbers)}"
        self._folder.mkdir()
        (self._folder / "memory.max").write_text(str(limit * MEBIBYTE))
        with contextlib.suppress(OSError):
            (self._folder / "memory.swap.max").write_text("0")
        self._peak = os.open(self._folder / "memory.peak", os.O_RDWR)

    def join(self) -> list[pathlib.Path]:
        return [self._folder / "cgroup.procs"]

    def memory(self) -> float:
        return int((self._folder / "memory.current").read_text()) / MEBIBYTE

    def peak(self) -> float:
        return int(os.pread(self._peak, 100, 0)) / MEBIBYTE

    def reset_peak(self) -> None:
        """Resets the peak. Before Linux 6.12 it cannot be reset."""
        with contextlib.suppress(OSError):
            os.write(self._peak, b"reset")

    def cpu_seconds(self) -> float:
        return _field(self._folder / "cpu.stat", "usage_usec") / 1e6

    def killed(self) -> int:
        return _field(self._folder / "memory.events", "oom_kill")

    def close(self) -> None:
        os.close(self._peak)
        _remove(self._folder)


class NoGroup(Group):
    """A group without a limit: values of /proc for the process `pid` and its descendants."""

    name = "none: memory is not limited"

    def __init__(self, pid: Callable[[], int]) -> None:
        self._pid = pid

    def join(self) -> list[pathlib.Path]:
        return []

    def memory(self) -> float:
        return self._sum("VmRSS")

    def peak(self) -> float:
        return self._sum("VmHWM")

    def reset_peak(self) -> None:
        for pid in tree(self._pid()):
            with contextlib.suppress(OSError):
                pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")

    def cpu_seconds(self) -> float:
        return sum(map(_cpu_seconds, tree(self._pid())))

    def killed(self) -> int:
        return 0

    def _sum(self, name: str) -> float:
        kib = 0
        for pid in tree(self._pid()):
            with contextlib.suppress(OSError):
                status = pathlib.Path(f"/proc/{pid}/status").read_text()
                kib += int(status.partition(f"{name}:")[2].split()[0])
        return kib / 1024


class Target:
    """A server to attack, in its own group of at most `limit` MiB."""

    def __init__(self, limit: int = LIMIT, **settings: str) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the server
        self.port, grpc_port = _free_ports(2)
        self.grpc_port = grpc_port if "SHOAL_GRPC_PORT" in settings else None
        ports = {"SHOAL_PORT": str(self.port)}
        if self.grpc_port:
            ports["SHOAL_GRPC_PORT"] = str(self.grpc_port)
        self._settings = {"SHOAL_LOG_LEVEL": "warning", **settings, **ports}
        try:
            self.group: Group = GroupV1(limit)
        except OSError:
            try:
                self.group = GroupV2(limit)
            except OSError:
                self.group = NoGroup(lambda: self.server.pid)
        self.server: Server
        try:
            self._start()
        except BaseException:
            self.group.close()
            raise

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        self.group.close()

    def restart(self) -> None:
        """Starts another server in the same group, at the same port."""
        self._end()
        self._start()

    def serves(self, patience: float = 15.0) -> bool:
        """Returns whether the server is ready within `patience` seconds."""
        return wait_until_ready(f"http://127.0.0.1:{self.port}", self.server.running, patience)

    def wait_until_quiet(self, patience: float = 30.0, share: float = 0.1) -> bool:
        """Returns whether the server uses at most `share` of a core within `patience` seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            began, before = time.monotonic(), self.group.cpu_seconds()
            time.sleep(0.1)
            if self.group.cpu_seconds() - before <= share * (time.monotonic() - began):
                return True
        return False

    def memory_after(self, seconds: float, rest: float, slack: float) -> float:
        """Returns the MiB in use once they are at most `rest` + `slack`, or after `seconds`."""
        end = time.monotonic() + seconds
        while (memory := self.group.memory()) > rest + slack and time.monotonic() < end:
            time.sleep(0.2)
        return memory

    def _start(self) -> None:
        files = ",".join(map(str, self.group.join()))
        self.server = Server("-c", _INTO, files, "-m", "service", **self._settings).start()
        if not self.serves(PATIENCE):
            self._end()
            raise RuntimeError(f"The server did not start. Its log: {self.server.log()[-3:]}")

    def _end(self) -> None:
        members = tree(self.server.pid)
        self.server.end()
        wait_until_ended(members, 10)  # the other processes end when their supervisor is killed


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process and of its children that have ended."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ended = (int(fields[13]) + int(fields[14])) * TICK
        with contextlib.suppress(OSError):
            return time.clock_gettime(~pid << 3 | 2) + ended  # clock_getcpuclockid(3)
        return (int(fields[11]) + int(fields[12])) * TICK + ended
    return 0.0


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [free.getsockname()[1] for free in sockets]


def _field(file: pathlib.Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _remove(*folders: pathlib.Path) -> None:
    for folder in folders:
        end = time.monotonic() + 5
        while folder.exists():
            try:
                folder.rmdir()
            except OSError as error:  # a member is still about to end
                if time.monotonic() > end:
                    print(f"{folder} cannot be removed: {error}", file=sys.stderr)
                    break
                time.sleep(0.05)
