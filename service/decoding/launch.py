"""Starts decoder processes by sending orders to the template.

The template is a fork server: the process that all decoder processes are forked from. The template
runs `service.decoding.template`. This module is the server's side of the connection.
"""

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

# With these variables, the allocator keeps freed memory for the next image, so large WebPs take
# half as long. The limit on memory includes the kept memory. Idle decoders return this memory.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
_KEPT = ("LD_LIBRARY_PATH",)
"""Names of the variables that decoders get from the server's environment, because Python may need
them to start. Other variables are not passed, because the environment may contain API keys."""
_RUN = (
    "import sys; sys.path[:] = {path!r}; "
    "from service.decoding import template; template.main({descriptor})"
)


class Template:
    """The process that decoder processes are forked from."""

    def __init__(self) -> None:
        self.sample_seconds = 0.0
        """CPU seconds that decoding the sample images takes on this machine."""
        self.ended = asyncio.Event()
        """Set when decoders can no longer be forked: the process has ended, or its next result may
        belong to an earlier order."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()

    @property
    def has_ended(self) -> bool:
        return self.ended.is_set()

    async def start(self) -> None:
        """Start the process, and wait until `sample_seconds` is known. Raises StartFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            # The template gets its own process group, so that Ctrl-C reaches only the server.
            # The template stays in the server's session, because Linux would otherwise ignore the
            # niceness of decoders (sched(7), autogroup).
            try:
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # Popen does not block
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
                    "the template process, which forks the decoder processes, cannot be started: "
                    f"{error}"
                ) from error
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._read)
        self.sample_seconds = json.loads(await self._receive())

    async def fork(self, memory: int, nicer: int) -> DecoderProcess:
        """Fork a new decoder. Callers must await `DecoderProcess.ready` before its first image.

        Args:
            memory: Maximum number of bytes of memory of the decoder.
            nicer: Increment of the niceness of the decoder (nice(2)).

        Raises:
            StartFailed: The system allows no more processes or descriptors, or the template has
                ended.
        """
        async with self._one_at_a_time:
            with ExitStack() as kept, ExitStack() as lent:
                try:
                    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    lent.enter_context(theirs)
                    kept.callback(ours.close)
                    file = _file_in_memory()
                    kept.callback(os.close, file)
                    readable = lent.enter_context(_read_only(file))
                except OSError as error:
                    raise StartFailed(f"a decoder process cannot be started: {error}") from error
                descriptors = theirs.fileno(), readable.fileno()
                pid = await self._ask(template.FORK, memory, nicer, *descriptors)
                if pid == 0:
                    raise StartFailed("the system allows no more decoder processes")
                kept.pop_all()
                return DecoderProcess(pid, ours, file)

    async def reap(self, process: DecoderProcess) -> int:
        """Kill `process` if it runs, and wait for its end.

        Returns the exit code of `process`, or the negative number of the signal that ended it.
        Raises StartFailed if the template and all its decoders have ended.
        """
        async with self._one_at_a_time:
            if process.exit_code is None:
                process.exit_code = await self._ask(template.REAP, process.pid)
            return process.exit_code

    def close(self) -> None:
        """Kill the template. The kernel then kills all decoders."""
        self.ended.set()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _ask(self, what: int, value: int, nicer: int = 0, *descriptors: int) -> int:
        """Send an order to the template, and return the result. Raises StartFailed."""
        if self._control is None or self.has_ended:
            raise StartFailed("the template process, which forks the decoder processes, has exited")
        try:
            order = template.ORDER.pack(what, value, nicer)
            socket.send_fds(self._control, [order], descriptors)
            (result,) = template.RESULT.unpack(await self._receive())
        except BaseException as error:
            self.ended.set()  # a late result would be mistaken for the next order's result
            if isinstance(error, OSError):
                raise StartFailed(
                    f"the template process, which forks the decoder processes, has exited: {error}"
                ) from error
            raise
        assert isinstance(result, int)
        return result

    def _read(self) -> None:
        """Receive a message of the template. An empty message means that the template has ended."""
        assert self._control is not None
        try:
            message = self._control.recv(template.MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(self._control)
            self.ended.set()
        self._messages.put_nowait(message)

    async def _receive(self) -> bytes:
        """Return the next message of the template. Raises StartFailed."""
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await self._messages.get()
        except TimeoutError as error:
            raise StartFailed(
                "the template process, which forks the decoder processes, does not respond"
            ) from error
        if not message:
            raise StartFailed("the template process, which forks the decoder processes, has exited")
        return message


def _environment() -> dict[str, str]:
    return _ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ}


def _file_in_memory() -> int:
    """Return a descriptor of a new file in memory, which is neither on a disk nor in /dev/shm."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shoal-image")
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


def _read_only(file: int) -> Any:
    """Open the same file for reading only."""
    try:
        return open(f"/proc/self/fd/{file}", "rb", buffering=0)
    except OSError:  # not Linux
        return os.fdopen(os.dup(file), "rb", buffering=0)
