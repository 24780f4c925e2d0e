"""The server's side of a decoder process ("decoder"): sends images, reads results, kills decoders.

A malicious image may control its decoder, so the server does not trust decoders. The server checks
the first byte and the length of each result, and reads the CPU time of a decoder from the kernel.
The kernel enforces the limit on memory (`service.decoding.sandbox`). The server copies each image
into a file in memory that the decoder can only read. The copy takes 5 us for a photo of 40 KB, and
3 ms for 10 MiB.

Decoding never sleeps: a decoder with an image computes, waits for a CPU or for memory, or is
stopped by a signal. A malicious image could make its decoder sleep, to delay other images without
using CPU time. So the server checks the states of busy decoders at random times, and kills decoders
that sleep. On average, a decoder can sleep for about `MAX_WAIT` in total before it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from contextlib import suppress

from service.decoding import template
from service.decoding.image import EncodedImage
from service.decoding.limits import HEAP_MEMORY

START_SECONDS = 30.0
"""Timeout in seconds for a message of the template, which decoders are forked from. The timeout is
long because the machine may be busy."""
MIN_WAIT, MAX_WAIT = 0.005, 0.1
"""Minimum and maximum number of seconds between two checks of a decoder that decodes an image. A
check takes less than 0.1 ms."""
EXIT_SECONDS = 0.05
"""Maximum number of seconds from the end of the connection to a process to its exit."""
IDLE_CPU_SECONDS = 0.25
"""Maximum CPU seconds that a decoder may use between two images, for example to free memory."""


class StartFailed(Exception):
    """No decoder process could be started."""


class ImageNotReceived(Exception):
    """The decoder process ended before it received the image."""


class DecoderEnded(Exception):
    """The decoder process was killed, or received an image and ended before it sent a result."""

    def __init__(self, killed_for: str | None = None) -> None:
        """
        Args:
            killed_for: Reason why the server killed the process: it exceeded its limit on
                `cpu_time` or `time`, or it slept instead of decoding (`sleep`). None: the server
                did not kill the process.
        """
        super().__init__(_ENDS[killed_for])
        self.killed_for = killed_for


_ENDS = {
    None: "ended",
    "cpu_time": "was killed: it exceeded its limit on CPU time",
    "time": "was killed: it exceeded its limit on time",
    "sleep": "was killed: it slept instead of decoding",
}


class DecoderProcess:
    """A decoder process, which decodes one image at a time."""

    def __init__(self, pid: int, link: socket.socket, file: int) -> None:
        """
        Args:
            pid: Process id. The system does not reuse the id until `Template.reap` is called or the
                template ends, whichever is first.
            link: Socket that is connected to the process.
            file: Writable descriptor of the file that the process reads images from.
        """
        self.pid = pid
        self.restrictions: list[str] = []
        """Names of the restrictions of the process (`sandbox.confine`), for the log."""
        self.used_at: float | None = None
        """Time when the process began to decode its last image, in seconds of the event loop's
        clock. None: the process has freed its memory since its last image, or has had no image."""
        self.is_busy = False
        """Whether the process is decoding an image."""
        self.images = 0
        """Number of images that the process has received."""
        self.image_seconds = 0.0
        """CPU seconds that the process took to decode its last image. If the process was killed
        because it exceeded its time limit or slept, at least the wall-clock seconds of decoding."""
        self.was_killed = False
        """Whether the server has killed the process."""
        self.exit_code: int | None = None
        """Result of `Template.reap` for this process. None: there is no result yet."""
        self._link = link
        self._file = file
        self._pidfd = _open_pidfd(pid)
        self._length = 0
        self._loop = asyncio.get_running_loop()
        self._seconds = 0.0
        self._held_seconds = 0.0
        self._killed_for: str | None = None
        link.setblocking(False)

    async def ready(self) -> None:
        """Wait until the process is restricted. Raises StartFailed after `START_SECONDS`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                message = await self._loop.sock_recv(self._link, template.MAX_MESSAGE)
        except (TimeoutError, ConnectionError):
            message = b""
        if not message:
            raise StartFailed(
                f"a decoder process ended, or was not ready within {START_SECONDS:g} seconds"
            )
        self.restrictions = json.loads(message)

    async def decode(
        self, image: EncodedImage, max_seconds: float, patience: float
    ) -> tuple[int, bytes]:
        """Decode an image. The process is killed if it exceeds a limit.

        Args:
            image: Image to decode.
            max_seconds: Maximum CPU seconds for decoding the image.
            patience: Maximum wall-clock time in seconds for decoding the image. Time in which the
                server was suspended (SIGSTOP) does not count.

        Returns:
            0 and the pixels, or a `Fault` and the repr of an exception. A malicious image may have
            chosen these values.

        Raises:
            DecoderEnded: The process was killed, or has received the image and ended.
            ImageNotReceived: The process has ended, and did not receive the image.
            OSError: There is not enough memory for a copy of the image.
        """
        self.images += 1
        self.used_at = now = self._loop.time()
        self._held_seconds = 0.0
        self.is_busy = True
        began = self._cpu_seconds()
        wait = _random_wait(min(max_seconds, patience))
        self._timer = self._loop.call_later(wait, self._check, began + max_seconds, patience, now)
        answer = None
        try:
            self._send(image)
            answer = await self._loop.sock_recv(self._link, template.MAX_MESSAGE)
        except ConnectionError:  # the process has not read the request
            pass
        finally:
            self.is_busy = False
            self._timer.cancel()
            self.image_seconds = self._cpu_seconds() - began
            if self._killed_for in ("time", "sleep"):
                self.image_seconds = max(self.image_seconds, self._held_seconds)
        if answer is None and not self._killed_for:
            raise ImageNotReceived
        if not answer or self._killed_for:
            raise DecoderEnded(self._killed_for)
        return answer[0], answer[1:]

    def free_memory(self) -> None:
        """Tell the process to return freed memory to the system, and clear the file of images."""
        self.used_at = None
        self._length = 0
        with suppress(OSError):
            os.truncate(self._file, 0)
            self._link.send(template.REQUEST.pack(0, 0, b"", 0, 0, 0))

    @property
    def has_sent(self) -> bool:
        """Whether a message of the process can be received, or the process has ended."""
        return self._peek() is not None

    @property
    def is_usable(self) -> bool:
        """Whether the process is busy, or has neither ended nor sent data without an image.

        Such data would be mistaken for the result of the next image.
        """
        return self.is_busy or not (self.was_killed or self.has_sent)

    async def has_exited(self) -> bool:
        """Wait until the process exits, for at most `EXIT_SECONDS`. Returns whether it has exited.

        Does not wait, and returns False, if a message of the process can be received.
        """
        if self._peek():
            return False
        if self._pidfd is None:  # not Linux, or Linux before 5.3
            return True
        exited = asyncio.Event()
        self._loop.add_reader(self._pidfd, exited.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await exited.wait()
        finally:
            self._loop.remove_reader(self._pidfd)
        return exited.is_set()

    def computes_for_itself(self) -> bool:
        """Whether the process has used much CPU time since the last call or the last image."""
        before = self._seconds
        return self._cpu_seconds() - before > IDLE_CPU_SECONDS

    def kill(self) -> None:
        """Kill the process. `decode` and `ready` then raise an exception."""
        self.was_killed = True
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self.exit_code is None:  # later, another process may have the same id
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process, and close the descriptors of this object. This method may be called
        twice."""
        if self._link.fileno() < 0:
            return
        self.kill()
        self._link.close()
        os.close(self._file)
        if self._pidfd is not None:
            os.close(self._pidfd)

    def _cpu_seconds(self) -> float:
        """Return the CPU seconds of the process since its start.

        Returns the last known value if the time cannot be read, for example after the end of the
        process.
        """
        with suppress(OSError):  # the process has ended, or this is not Linux
            # This is the CPU clock of the process: clock_getcpuclockid(3).
            self._seconds = time.clock_gettime((~self.pid << 3) | 2)
        return self._seconds

    def _send(self, image: EncodedImage) -> None:
        """Copy `image` into the file, and tell the process to decode it.

        Raises ConnectionError if the process has ended, and OSError if there is not enough memory.
        """
        length = len(image.data)
        if length < self._length:
            os.truncate(self._file, length)  # removes bytes of an earlier image
        self._length = length
        if os.pwrite(self._file, image.data, 0) != length:
            raise OSError("there is not enough memory for the image")
        size = image.width, image.height, image.max_pixels
        memory = image.memory + HEAP_MEMORY
        self._link.send(template.REQUEST.pack(length, memory, image.format.encode(), *size))

    def _peek(self) -> bytes | None:
        """Return the first byte of a message of the process, without receiving the message.

        Returns no bytes if the process has closed its socket, and None if there is no message.
        """
        try:
            return self._link.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def _check(
        self, max_cpu_seconds: float, patience: float, checked_at: float, slept: bool = False
    ) -> None:
        """Kill the process if it has exceeded a limit, or if a second check of the current image
        finds it asleep. Otherwise schedule the next check.

        If the server was suspended (SIGSTOP) between two checks, the decoder was probably
        suspended, too. Therefore, the time between two checks counts as `MAX_WAIT` at most.

        Args:
            max_cpu_seconds: Maximum CPU seconds of the process since its start.
            patience: Maximum wall-clock time in seconds for decoding the current image.
            checked_at: Time of the last check, in seconds of the event loop's clock.
            slept: Whether the process slept at an earlier check of the current image. One such
                check is no proof: the process may have sent its result during the check.
        """
        now = self._loop.time()
        self._held_seconds += min(now - checked_at, MAX_WAIT)
        cpu_left = max_cpu_seconds - self._cpu_seconds()
        time_left = patience - self._held_seconds
        sleeps = self._sleeps()
        if cpu_left <= 0:
            self._killed_for = "cpu_time"
        elif time_left <= 0:
            self._killed_for = "time"
        elif sleeps and slept:
            self._killed_for = "sleep"
        else:
            wait = MIN_WAIT if sleeps else _random_wait(min(cpu_left, time_left))
            self._timer = self._loop.call_later(
                wait, self._check, max_cpu_seconds, patience, now, slept or sleeps
            )
            return
        self.kill()

    def _sleeps(self) -> bool:
        """Whether the process sleeps and has sent no result. False if its state cannot be read."""
        if self.has_sent:
            return False
        try:
            with open(f"/proc/{self.pid}/stat", "rb", buffering=0) as file:
                return file.read(512).rpartition(b") ")[2].startswith(b"S")
        except OSError:  # not Linux
            return False


def _random_wait(longest: float) -> float:
    """Return a random number of seconds until the next check: about `longest` at most.

    The time is random so that a decoder cannot compute during checks and sleep between them.
    """
    longest = max(MIN_WAIT, min(longest, MAX_WAIT))
    return random.uniform(MIN_WAIT, longest)  # noqa: S311  # decoders cannot observe the generator


def _open_pidfd(pid: int) -> int | None:
    """Open a pidfd, a descriptor that identifies a process even after its end.

    Returns None if the system has no pidfds or the process does not exist.
    """
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None
