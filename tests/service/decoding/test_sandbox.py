"""What a confined process can still do. Each case runs in a process of its own."""

from __future__ import annotations

import ctypes
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the restrictions are Linux'"),
]

CONFINED = """
import ctypes, mmap, os, signal, socket, subprocess, sys, threading
from service.decoding.sandbox import confine
held = confine(64 * 2**20)
try:
    {attempt}
except BaseException as error:
    outcome = type(error).__name__
else:
    outcome = "possible"
os.write(1, (outcome + "\\n" + "\\n".join(held)).encode())
os._exit(0)
"""


def attempt(code: str) -> tuple[str, list[str]]:
    """What comes of `code` in a confined process, and which restrictions hold there."""
    done = subprocess.run(
        [sys.executable, "-c", CONFINED.format(attempt=code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    outcome, *held = done.stdout.decode().split("\n")
    return outcome, held


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd')",
        "open('/dev/null')",
        "os.open('/tmp', os.O_RDONLY)",
        "os.listdir('/')",
        "os.stat('/')",
        "os.readlink('/proc/self/exe')",
        "os.memfd_create('x')",
        "os.pipe()",
        "os.fork()",
        "os.execv(sys.executable, [sys.executable])",
        "subprocess.run(['true'])",
        "threading.Thread(target=print).start()",
        "socket.socket()",
        "socket.socketpair()",
        "os.kill(os.getppid(), 0)",
        "os.kill(os.getpid(), 0)",
        "signal.pidfd_send_signal(1, 0)",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
        "os.nice(-1)",
        "os.setuid(1)",
        "bytearray(63 * 2**20)",  # what the process has already counts, too
        "[bytearray(2**20) for _ in range(128)]",
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (-1, -1))",
        "os.chdir('/')",
        "os.unlink('/tmp/none')",
        "import wave",
    ],
)
def test_sandbox_denies_what_decoding_does_not_need(code: str) -> None:
    """Files, processes, threads, sockets, signals, executable memory and more memory are denied."""
    outcome, held = attempt(code)
    assert outcome not in ("possible", "")
    assert {"no files", "no core dumps", "no new privileges", "seccomp"} <= {*held}


def test_sandbox_reports_landlock_where_the_kernel_has_it() -> None:
    """No layer is skipped in silence."""
    version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    _, held = attempt("pass")
    assert (f"Landlock {version}" in held) == (version > 0)


def test_sandbox_allows_what_decoding_needs() -> None:
    """Memory within the limit, time, and the descriptors that are open."""
    code = "import time; time.monotonic(); bytearray(32 * 2**20); os.write(1, b'')"
    assert attempt(code)[0] == "possible"


@pytest.mark.parametrize("layer", ["Landlock", "seccomp"])
def test_sandbox_layers_deny_files_each_by_itself(layer: str) -> None:
    """A file cannot be opened where only one of the layers holds."""
    other = {
        "Landlock": "_filter_system_calls",
        "seccomp": "_restrict_by_landlock",
    }[layer]
    code = f"""if True:
        import os, resource
        from service.decoding import sandbox
        sandbox.{other} = lambda: False
        sandbox.resource = type("Unlimited", (), dict(vars(resource), setrlimit=print))
        held = sandbox.confine(2**30)
        if not any("{layer}" in each for each in held):
            os._exit(77)
        try:
            os.open("/etc/passwd", os.O_RDONLY)
        except PermissionError:
            os._exit(0)
        os._exit(1)
    """
    status = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode
    if status == 77:
        pytest.skip(f"this kernel has no {layer}")
    assert status == 0
