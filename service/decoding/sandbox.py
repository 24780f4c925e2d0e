"""Restricts a decoder process, which decodes images, with features of the kernel.

A decoder process calls `confine` before its first image. At this time, the process has no open
descriptors except a socket and a file. The following restrictions then apply to the process:
- It may allocate a limited amount of memory (RLIMIT_AS).
- It cannot write core dumps or open files (RLIMIT_CORE, RLIMIT_NOFILE, PR_SET_DUMPABLE).
- The kernel kills it when its parent ends (PR_SET_PDEATHSIG, set by `die_with_parent`).
- It cannot gain privileges (PR_SET_NO_NEW_PRIVS).
- It cannot access files, TCP ports, abstract sockets or other processes (Landlock in Linux 5.13 or
  later; newer versions of Landlock can deny more of these).
- It may make only the system calls that are listed below. These calls concern time, the exit of the
  process, open descriptors, and memory that is not executable. All other system calls, such as
  calls that create processes, fail with EPERM (seccomp on x86-64 and aarch64). The filter also
  applies to root; a limit on the number of processes would not.

The server limits CPU time (`service.decoding.process`). macOS has neither Landlock nor seccomp, and
does not enforce RLIMIT_AS. On macOS, a decoder is a separate process with few restrictions.

Sources: landlock(7), seccomp(2), prctl(2), getrlimit(2), and Linux' include/uapi.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

_EPERM = 1

RESTING_MEMORY = 12 * 2**20
"""Number of bytes that a decoder process takes without an image. The template, the process that
decoders are forked from, takes the same amount. Memory that the processes share is not counted."""


def confine(memory: int) -> list[str]:
    """Irrevocably restrict this process to what decoding needs.

    Args:
        memory: Maximum number of bytes of memory for images. The whole address space is limited to
            this number plus `RESTING_MEMORY`.

    Returns:
        The names of the restrictions that apply, for the log. Restrictions that the kernel does not
        support are missing.

    Raises:
        OSError: A resource limit cannot be set.
    """
    held = _restrict_on_linux() if sys.platform == "linux" else []
    size = memory + RESTING_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for limit in resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE:
        resource.setrlimit(limit, (0, 0))
    held = [f"memory {memory // 2**20} MiB", "no files", *held]
    if sys.platform == "linux" and _filter_system_calls():
        held.append("seccomp")
    return held


def _restrict_on_linux() -> list[str]:
    held = []
    if _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0:
        held.append("no core dumps")
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no new privileges")
        if version := _restrict_by_landlock():  # needs a descriptor, so RLIMIT_NOFILE comes later
            held.append(f"Landlock {version}")
    return held


def free_memory(memory: int) -> int:
    """Return the bytes of address space that a new process has left after `confine(memory)`.

    The result is at least 1. Callers must call this function before `confine`.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        held = 0
    return max(1, memory + RESTING_MEMORY - held)


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends. Has an effect on Linux only."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


# Constants and functions for Landlock

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same numbers on every architecture
_ASK_VERSION = 1
_FILES = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""Bits of the kinds of file access that Landlock can deny, by version of Landlock."""
_TCP, _SCOPES = 0x3, 0x3
"""Bits of the restricted operations. `_TCP`: bind and connect. `_SCOPES`: abstract Unix sockets and
signals."""


def _restrict_by_landlock() -> int:
    """Deny everything that the kernel's Landlock can deny.

    Returns the version of Landlock, or 0 if Landlock denies nothing.
    """
    libc = _libc()
    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return 0
    files = _FILES[max(known for known in _FILES if known <= version)]
    attributes = struct.pack(
        "=QQQ", files, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    try:
        return version if libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


# Constants and functions for seccomp: a classic BPF program checks the number of each system call.
# The numbers are from Linux' tables and never change.

_CALLS = {
    # name: number on x86-64, number on aarch64
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
_WITHOUT_EXECUTION = {"mmap": (9, 222), "mprotect": (10, 226)}
"""System calls that are allowed if their third argument does not request executable memory."""
_PROT_EXEC = 0x4

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables above and value of AUDIT_ARCH, by name of the machine's architecture."""

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32
"""Offsets in bytes in struct seccomp_data. `_THIRD_ARGUMENT`: low half of the third argument."""
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | _EPERM, 0x80000000


def _filter_system_calls() -> bool:
    known = _ARCHITECTURES.get(platform.machine())
    if known is None or sys.byteorder != "little" or sys.maxsize < 2**32:
        return False
    column, architecture = known
    allowed = [numbers[column] for numbers in _CALLS.values()]
    checked = [numbers[column] for numbers in _WITHOUT_EXECUTION.values()]
    program = _program(architecture, allowed, checked)
    code = ctypes.create_string_buffer(program, len(program))
    # This is struct sock_fprog: a length, padding, and a pointer.
    rules = ctypes.create_string_buffer(
        struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    )
    failed: int = _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, rules, 0, 0)
    return failed == 0


def _program(architecture: int, allowed: Iterable[int], checked: Iterable[int]) -> bytes:
    """Return the filter program as an array of struct sock_filter.

    Args:
        architecture: Value of AUDIT_ARCH. Processes with another value are killed.
        allowed: Numbers of the allowed system calls.
        checked: Numbers of the system calls in `_WITHOUT_EXECUTION`.
    """

    def step(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, when_true, when_false, value)

    steps = [
        step(_LOAD, _ARCHITECTURE),
        step(_JUMP_EQUAL, architecture, when_true=1),
        step(_RETURN, _KILL),
        step(_LOAD, _NUMBER),
    ]
    for number in allowed:
        steps += [step(_JUMP_EQUAL, number, when_false=1), step(_RETURN, _ALLOW)]
    for number in checked:
        steps += [
            step(_JUMP_EQUAL, number, when_false=4),
            step(_LOAD, _THIRD_ARGUMENT),
            step(_JUMP_ANY_BIT, _PROT_EXEC, when_true=1),
            step(_RETURN, _ALLOW),
            step(_RETURN, _DENY),
        ]
    steps.append(step(_RETURN, _DENY))  # also denies the numbers of the x32 ABI
    return b"".join(steps)
