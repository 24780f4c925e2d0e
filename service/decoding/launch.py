"""Starts decoder processes: the server's side of their template (`service.decoding.template`)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import Any

from service.decoding import template
from service.decoding.process import START_SECONDS, DecoderProcess, StartFailed

# The allocator keeps freed memory for the next image, so large WebPs take half as long. The limit
# on memory bounds what is kept, and idle decoders return it.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
_KEPT = ("LD_LIBRARY_PATH",)
"""Variables that decoders get from the server's environment, which also holds its keys: those that
Python may need to start."""
_RUN = (
    "import sys; sys.path[:] = {path!r}; "
    "from service.decoding import template; template.main({descriptor})"
)


class Template:
    """The process that decoders are forked from."""

    def __init__(self) -> None:
        self.sample_seconds = 0.0
        """CPU seconds that decoding a sample takes on this machine."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._one_at_a_time = asyncio.Lock()
        self.has_ended = False

    async def start(self) -> None:
        """Start the process and time its sample. Raises StartFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            # A process group of its own: Ctrl-C must reach the server only. No session of its own:
            # with one, Linux would ignore the niceness of decoders (sched(7), autogroup).
            try:
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # it does not wait
                    [
                        *(sys.executable, "-I", "-c"),
                        _RUN.format(path=sys.path, descriptor=theirs.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                raise StartFailed(
                    f"the template of the decoders cannot be started: {error}"
                ) from error
        self._control = ours
        self.sample_seconds = json.loads(await self._receive())

    async def fork(self, memory: int, nicer: int) -> DecoderProcess:
        """A new decoder. Call `ready` before its first image.

        Args:
            memory: Bytes that it may take.
            nicer: Increment of its niceness (nice(2)).

        Raises:
            StartFailed: The system allows no further process or descriptor, or the template has
                ended.
        """
        with ExitStack() as opened:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened.enter_context(theirs)
                opened.callback(ours.close)
                file = _file_in_memory()
                opened.callback(os.close, file)
                readable = opened.enter_context(_read_only(file))
            except OSError as error:
                raise StartFailed(f"a decoder process cannot be started: {error}") from error
            pid = await self._ask(template.FORK, memory, nicer, theirs.fileno(), readable.fileno())
            if pid == 0:
                raise StartFailed("the system allows no further process")
            return DecoderProcess(pid, ours.dup(), os.dup(file))

    async def reap(self, process: DecoderProcess) -> int:
        """How `process`, which has ended or is to end, ended: its exit code, or minus the signal.

        Raises StartFailed where the template has ended, and all decoders with it.
        """
        if process.exit_code is None:
            process.exit_code = await self._ask(template.REAP, process.pid)
        return process.exit_code

    def close(self) -> None:
        """Kill the template. The kernel then kills all decoders."""
        self.has_ended = True
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _ask(self, what: int, value: int, nicer: int = 0, *descriptors: int) -> int:
        """The result of an order. Raises StartFailed."""
        async with self._one_at_a_time:
            assert self._control is not None
            try:
                order = template.ORDER.pack(what, value, nicer)
                socket.send_fds(self._control, [order], descriptors)
                (result,) = template.RESULT.unpack(await self._receive())
            except BaseException as error:
                # A later answer would be taken for that to the next order.
                self.has_ended = True
                if isinstance(error, OSError):
                    raise StartFailed(f"the template of the decoders is gone: {error}") from error
                raise
        assert isinstance(result, int)
        return result

    async def _receive(self) -> bytes:
        """The template's next message. Raises StartFailed."""
        assert self._control is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await asyncio.get_running_loop().sock_recv(
                    self._control, template.MAX_MESSAGE
                )
        except TimeoutError as error:
            raise StartFailed("the template of the decoders does not answer") from error
        if not message:
            raise StartFailed("the template of the decoders has ended")
        return message


def _environment() -> dict[str, str]:
    return _ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ}


def _file_in_memory() -> int:
    """A descriptor of an empty file in memory, which is on no disk and not in /dev/shm."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shoal-image")
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


def _read_only(file: int) -> Any:
    """The same file, opened for reading only."""
    try:
        return open(f"/proc/self/fd/{file}", "rb", buffering=0)
    except OSError:  # not Linux
        return os.fdopen(os.dup(file), "rb", buffering=0)
