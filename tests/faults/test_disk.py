"""A real file system that is full, read-only, or without the files by which names are looked up, in
a mount namespace of the test's own."""

from __future__ import annotations

import os
import pathlib
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from benchmarks.processes import started
from tests.e2e.process import PATIENCE, REAL, ROOT, wait_until_ready
from tests.service.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def can_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount")


@contextmanager
def serving(before: str, log: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """The real service after the shell commands `before`, its output in the file `log`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    serve = f"exec {shlex.quote(sys.executable)} {shlex.join(REAL)} >>{log} 2>&1"
    command = ["unshare", "-rm", "sh", "-ec", f"{before}\n{serve}"]
    environment = {"SHOAL_PORT": port, "SHOAL_LOG_LEVEL": "debug", "SHOAL_LOG_FORMAT": "json"}
    url = f"http://127.0.0.1:{port}"
    with (
        started(
            command, grace=0, cwd=ROOT, env={**os.environ, **environment}, text=True
        ) as process,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert wait_until_ready(url, lambda: process.poll() is None), "the server is not ready"
        yield client, process


def answers(client: httpx.Client, count: int) -> list[int]:
    return [client.post("/predict", files={"img": png(7)}).status_code for _ in range(count)]


@needs_mounts
def test_disk_that_fills_up(tmp_path: pathlib.Path) -> None:
    """With the log on a full disk, requests are answered and the stop is clean."""
    disk = shlex.quote(str(tmp_path))
    before = f"mount -t tmpfs -o size=64k none {disk}; export TMPDIR={disk} HOME={disk}"
    with serving(before, f"{disk}/log") as (client, process):
        namespace = pathlib.Path(f"/proc/{process.pid}/root{tmp_path}")
        assert answers(client, 300) == [200] * 300
        full = os.statvfs(namespace)
        assert full.f_bavail == 0, "the disk was to be full"
        assert answers(client, 100) == [200] * 100
        (namespace / "log").write_text("")  # as logrotate does with copytruncate
        assert answers(client, 20) == [200] * 20
        lines = (namespace / "log").read_text(errors="replace")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert '"request"' in lines, "the log goes on when there is room again"


@needs_mounts
def test_read_only_disk(tmp_path: pathlib.Path) -> None:
    """With a read-only file system the service starts, answers and stops."""
    before = "mount --bind / / 2>/dev/null || true; mount -o remount,bind,ro / || exit 77"
    log = tmp_path / "log"
    with log.open("w") as out:
        probe = subprocess.run(
            ["unshare", "-rm", "sh", "-ec", f"{before}\n! touch {shlex.quote(str(log))}"],
            stdout=out,
            stderr=out,
        )
    if probe.returncode:
        pytest.skip("the root of this system cannot be made read-only: " + log.read_text())
    with serving(before, "/dev/null") as (client, process):
        assert answers(client, 20) == [200] * 20
        process.terminate()
        assert process.wait(PATIENCE) == 0


@needs_mounts
def test_network_without_name_resolution(tmp_path: pathlib.Path) -> None:
    """Without name resolution the service starts, answers and stops."""
    files = "/etc/hosts /etc/resolv.conf /etc/nsswitch.conf"
    before = f"for file in {files}; do mount --bind /dev/null $file; done; ! getent hosts localhost"
    with serving(before, shlex.quote(str(tmp_path / "log"))) as (client, process):
        assert answers(client, 20) == [200] * 20
        process.terminate()
        assert process.wait(PATIENCE) == 0
