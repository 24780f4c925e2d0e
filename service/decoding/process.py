"""The server's side of the decoder processes: starts them, sends them images, kills them.

Decoders are assumed to be hostile: the server checks the first byte and the length of their
answers, reads their CPU time from the kernel, and leaves the limit on memory to the kernel
(`service.decoding.sandbox`). An image is copied into a file in memory that the decoder can only
read, when its turn comes. That takes 5 us for a photo of 40 KB and 3 ms for 10 MiB.
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
from contextlib import ExitStack, suppress
from typing import Any

from service.decoding import template
from service.decoding.image import EncodedImage

START_SECONDS = 30.0
"""Time in which the template must answer, also on a busy machine."""
MIN_WAIT = 0.005
"""Minimum number of seconds between two reads of a decoder's CPU time."""
STALL_SECONDS = 5.0
"""Seconds after which a decoder is killed that has an image and uses no CPU time."""
IDLE_CPU_SECONDS = 0.25
"""CPU time that a decoder may use between two images: to free memory."""

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


class DecoderGone(Exception):
    """The process had ended, or misbehaved, before it was given the image."""


class DecoderEnded(Exception):
    """The process ended before it answered; `for_cpu_time`: it was killed for its CPU time."""

    def __init__(self, for_cpu_time: bool) -> None:
        super().__init__("took too much CPU time" if for_cpu_time else "crashed")
        self.for_cpu_time = for_cpu_time


class DecoderProcess:
    """A decoder process, which decodes one image at a time."""

    def __init__(self, pid: int, link: socket.socket, file: int) -> None:
        """
        Args:
            pid: Its process id, which is its own until the template has reaped it.
            link: The socket to it.
            file: A writable descriptor of the file that it reads images from.
        """
        self.pid = pid
        self.restrictions: list[str] = []
        """Names of its restrictions (`sandbox.confine`), for the log."""
        self.used_at: float | None = None
        """When its last image began, in the event loop's time; None: it has freed memory since."""
        self.is_busy = False
        self.image_seconds = 0.0
        """CPU seconds that its last image took."""
        self.exit_code: int | None = None
        """How it ended, as `Template.reap` says; None: it was not reaped."""
        self._link = link
        self._file = file
        self._length = 0
        self._loop = asyncio.get_running_loop()
        self._seconds = 0.0
        self._moved_at = 0.0
        self._took_too_long = False
        link.setblocking(False)

    async def ready(self) -> None:
        """Wait until it is confined. Raises StartFailed where it is not, soon."""
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await self._receive()
        except TimeoutError:
            message = b""
        if not message:
            raise StartFailed("a decoder process was not ready")
        self.restrictions = json.loads(message)

    async def decode(self, image: EncodedImage, max_seconds: float) -> tuple[int, bytes]:
        """Decode an image, and kill the process if that takes more than `max_seconds` of CPU time,
        or if it neither computes nor answers.

        Returns: 0 and the pixels, or a `Fault` and the repr of an exception. Not to be trusted.

        Raises:
            DecoderGone: The process had ended, or sent something, before.
            DecoderEnded: The process was killed, or crashed.
            OSError: There is no memory for a copy of the image.
        """
        self._check_silent()
        self.used_at = self._moved_at = self._loop.time()
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
        """Tell it to return freed memory to the system, and free its copy of the last image."""
        self.used_at = None
        self._length = 0
        with suppress(OSError):
            os.truncate(self._file, 0)
            self._link.send(template.REQUEST.pack(0, b"", 0, 0, 0))

    def computes_for_itself(self) -> bool:
        """Whether it has used much CPU time since its last image ended."""
        before = self._seconds
        return self._cpu_seconds() - before > IDLE_CPU_SECONDS

    def kill(self) -> None:
        """Kill it. Its caller learns that it has ended."""
        if self.exit_code is None:  # or its process id may be another's
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, and close its descriptors."""
        self.kill()
        self._link.close()
        os.close(self._file)

    def _check_silent(self) -> None:
        """Raises DecoderGone where it has sent something that was not asked for: it would be taken
        for the answer to the next image."""
        try:
            self._link.recv(1)
        except BlockingIOError:
            return
        except ConnectionError:
            pass
        raise DecoderGone

    def _cpu_seconds(self) -> float:
        """CPU seconds that it has used since its start; the last known value if it has ended."""
        with suppress(OSError):  # it has ended, or this is not Linux
            # The clock of another process: clock_getcpuclockid(3).
            self._seconds = time.clock_gettime((~self.pid << 3) | 2)
        return self._seconds

    def _send(self, image: EncodedImage) -> None:
        """Copy `image` into the file and tell the process. Raises DecoderGone, and OSError where
        there is no memory."""
        length = len(image.data)
        if length < self._length:
            os.truncate(self._file, length)  # nothing of another client's image stays behind it
        self._length = length
        if os.pwrite(self._file, image.data, 0) != length:
            raise OSError("there is not enough memory for the image")
        size = image.width, image.height, image.max_pixels
        try:
            self._link.send(template.REQUEST.pack(length, image.format.encode(), *size))
        except ConnectionError as error:
            raise DecoderGone from error

    async def _receive(self) -> bytes:
        """Its next message; empty: it has ended."""
        try:
            return await self._loop.sock_recv(self._link, template.MAX_MESSAGE)
        except ConnectionError:
            return b""

    def _kill_after(self, cpu_seconds: float) -> None:
        """Kill it if it has used `cpu_seconds` since its start, or none for `STALL_SECONDS`; else
        check again later. Time in which it does not run, as on a busy machine, does not count."""
        before, now = self._seconds, self._loop.time()
        left = cpu_seconds - self._cpu_seconds()
        if self._seconds > before:
            self._moved_at = now
        if left <= 0 or now - self._moved_at > STALL_SECONDS:
            self._took_too_long = left <= 0
            self.kill()
        else:
            wait = min(max(left, MIN_WAIT), STALL_SECONDS / 2)
            self._timer = self._loop.call_later(wait, self._kill_after, cpu_seconds)


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
