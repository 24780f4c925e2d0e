"""Decoder processes, as the server sees them: started, given an image, timed, and killed.

A decoder is hostile until it has ended: of its answers only their first byte and length are
trusted, its CPU time is read from the kernel, and its memory is the kernel's to limit
(`service.decoding.sandbox`). An image goes into a file in memory that the decoder can only read; it
is copied there when its turn comes, which takes 5 us for a photo of 40 KB and 3 ms for 10 MiB.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

from service.decoding import template
from service.decoding.image import EncodedImage

START_SECONDS = 30.0
"""In which the template must have imported what it needs, on however busy a machine."""
MIN_WAIT = 0.005
"""Seconds between two looks at the CPU time of a decoder."""

# Freed memory is kept for the next image: large WebPs take half the time. The limit on memory
# bounds what is kept, and a decoder that has nothing to do gives it back.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
_KEPT = ("LD_LIBRARY_PATH",)
"""Of the server's own environment, which holds its keys, only what Python may need to start."""
_RUN = (
    "import sys; sys.path[:] = {path!r}; "
    "from service.decoding import template; template.main({descriptor})"
)


class StartFailed(Exception):
    """No decoder process could be started."""


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
        """Raises StartFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            # A process group of its own: Ctrl-C is the server's to handle. No session of its own,
            # in which Linux would ignore how nice the decoders are.
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
        message, _ = await self._receive()
        self.sample_seconds = json.loads(message)

    async def fork(self, memory: int, nicer: int) -> DecoderProcess:
        """A new decoder that may take `memory` bytes. Raises StartFailed."""
        async with self._one_at_a_time:
            assert self._control is not None
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            file = _file_in_memory()
            try:
                with theirs, _read_only(file) as readable:
                    socket.send_fds(
                        self._control,
                        [template.FORK.pack(memory, nicer)],
                        [theirs.fileno(), readable.fileno()],
                    )
                message, descriptors = await self._receive()
                (pid,) = template.FORKED.unpack(message)
                if pid == 0:
                    raise StartFailed("the system allows no more processes or descriptors")
            except BaseException as error:
                ours.close()
                os.close(file)
                if isinstance(error, ConnectionError):
                    self.has_ended = True
                if isinstance(error, OSError):
                    raise StartFailed(f"the template of the decoders is gone: {error}") from error
                raise
        return DecoderProcess(pid, descriptors[0] if descriptors else None, ours, file)

    def close(self) -> None:
        """End the template, and with it all decoders."""
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def _receive(self) -> tuple[bytes, list[int]]:
        """The template's next message. Raises StartFailed."""
        assert self._control is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                await _readable(self._control)
        except TimeoutError as error:
            raise StartFailed("the template of the decoders does not answer") from error
        message, descriptors, _, _ = socket.recv_fds(self._control, template.MAX_MESSAGE, 1)
        if not message:
            self.has_ended = True
            raise StartFailed("the template of the decoders has ended")
        return message, descriptors


class DecoderEnded(Exception):
    """The process is gone; `for_cpu_time`: it was killed for taking too much."""

    def __init__(self, for_cpu_time: bool) -> None:
        super().__init__("took too much CPU time" if for_cpu_time else "crashed")
        self.for_cpu_time = for_cpu_time


class DecoderProcess:
    """One decoder, which decodes one image at a time."""

    def __init__(self, pid: int, pidfd: int | None, link: socket.socket, file: int) -> None:
        """
        Args:
            pid: Its process id.
            pidfd: A descriptor that stands for the process (pidfd_open(2)); None: not Linux.
            link: The socket that its answers come by.
            file: A descriptor of the file that it reads images from.
        """
        self.restrictions: list[str] = []
        """What the kernel denies it, for the log."""
        self.used_at: float | None = None
        """When it began its last image, in the event loop's time; None: it keeps no memory."""
        self.is_busy = False
        self.pid = pid
        self._pidfd = pidfd
        self._link = link
        self._file = file
        self._loop = asyncio.get_running_loop()
        self.image_seconds = 0.0
        """CPU time that its last image took."""
        self._last_seconds = 0.0
        self._took_too_long = False
        link.setblocking(False)

    async def ready(self) -> None:
        """Wait until it has given up what it does not need. Raises StartFailed."""
        if message := await self._receive():
            self.restrictions = json.loads(message)
        else:
            raise StartFailed("a decoder process ended before it was ready")

    async def decode(self, image: EncodedImage, max_seconds: float) -> tuple[int, bytes]:
        """0 and the pixels, or a Fault and what the decoder raised.

        The process is killed when it has used `max_seconds` of CPU time. Raises DecoderEnded.
        """
        self.used_at = self._loop.time()
        self.is_busy = True
        began = self._cpu_seconds()
        self._timer = self._loop.call_later(max_seconds, self._kill_after, began + max_seconds)
        try:
            self._send(image)
            answer = await self._receive()
        finally:
            self.is_busy = False
            self._timer.cancel()
            self.image_seconds = self._cpu_seconds() - began
        if not answer:
            raise DecoderEnded(self._took_too_long)
        return answer[0], answer[1:]

    def free_memory(self) -> None:
        """Let it give back what it kept for the next image."""
        self.used_at = None
        with suppress(OSError):
            os.truncate(self._file, 0)
            self._link.send(template.REQUEST.pack(0, b"", 0, 0, 0))

    def close(self) -> None:
        """End it, and free its descriptors."""
        self._kill()
        self._link.close()
        os.close(self._file)
        if self._pidfd is not None:
            os.close(self._pidfd)

    def _cpu_seconds(self) -> float:
        """CPU time it has used since it began; the last that is known where it is gone."""
        with suppress(OSError):  # it is gone, or this is not Linux
            # The clock of another process: clock_getcpuclockid(3).
            self._last_seconds = time.clock_gettime((~self.pid << 3) | 2)
        return self._last_seconds

    def _send(self, image: EncodedImage) -> None:
        """Raises OSError where there is no memory for it."""
        if os.pwrite(self._file, image.data, 0) != len(image.data):
            raise OSError("there is not enough memory for the image")
        size = image.width, image.height, image.max_pixels
        with suppress(ConnectionError):  # it is gone, which is noticed when its answer is awaited
            self._link.send(template.REQUEST.pack(len(image.data), image.format.encode(), *size))

    async def _receive(self) -> bytes:
        """Its next message; empty: it is gone."""
        try:
            return await self._loop.sock_recv(self._link, template.MAX_MESSAGE)
        except ConnectionError:
            return b""

    def _kill_after(self, cpu_seconds: float) -> None:
        """Kill it when it has used so much since it began. Time in which it does not run does not
        count: on a busy machine the timer looks again."""
        left = cpu_seconds - self._cpu_seconds()
        if left > 0:
            wait = max(left, MIN_WAIT)
            self._timer = self._loop.call_later(wait, self._kill_after, cpu_seconds)
        else:
            self._took_too_long = True
            self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    return _ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ}


def _file_in_memory() -> int:
    """A descriptor of an empty file that no disk and no /dev/shm holds."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("shoal-image")
    with tempfile.TemporaryFile() as file:  # not Linux
        return os.dup(file.fileno())


def _read_only(file: int) -> Any:
    """The same file, for a process that must not write to it."""
    try:
        return open(f"/proc/self/fd/{file}", "rb", buffering=0)
    except OSError:  # not Linux
        return os.fdopen(os.dup(file), "rb", buffering=0)


async def _readable(link: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def call() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(link, call)
    try:
        await readable
    finally:
        loop.remove_reader(link)
