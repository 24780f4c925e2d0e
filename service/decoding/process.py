"""The server's side of a decoder process: sends it images, reads its answers, and kills it.

Decoders are assumed to be hostile: the server checks the first byte and the length of their
answers, reads their CPU time from the kernel, and leaves the limit on memory to the kernel
(`service.decoding.sandbox`). An image is copied into a file in memory that the decoder can only
read, when its turn comes. That takes 5 us for a photo of 40 KB and 3 ms for 10 MiB.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import time
from contextlib import suppress

from service.decoding import template
from service.decoding.image import EncodedImage
from service.decoding.limits import HEAP_MEMORY

START_SECONDS = 30.0
"""Time in which the template must answer, also on a busy machine."""
MIN_WAIT, MAX_WAIT = 0.005, 1.0
"""Minimum and maximum number of seconds between two checks of a decoder that has an image."""
IDLE_CPU_SECONDS = 0.25
"""CPU time that a decoder may use between two images: to free memory."""


class StartFailed(Exception):
    """No decoder process could be started."""


class DecoderGone(Exception):
    """The process had ended, or misbehaved, before it was given the image."""


class DecoderEnded(Exception):
    """The process ended before it answered; `killed_for`: what the server killed it for, if it did:
    `cpu_time` or `time`."""

    def __init__(self, killed_for: str | None = None) -> None:
        super().__init__(f"was killed for its {killed_for}" if killed_for else "ended")
        self.killed_for = killed_for


class DecoderProcess:
    """A decoder process, which decodes one image at a time."""

    def __init__(self, pid: int, link: socket.socket, file: int) -> None:
        """
        Args:
            pid: Its process id, which is its own until the template has reaped it, or has ended.
            link: The socket to it.
            file: A writable descriptor of the file that it reads images from.
        """
        self.pid = pid
        self.restrictions: list[str] = []
        """Names of its restrictions (`sandbox.confine`), for the log."""
        self.used_at: float | None = None
        """When its last image began, in the event loop's time; None: it has freed memory since."""
        self.is_busy = False
        self.images = 0
        """Number of images that it was given."""
        self.image_seconds = 0.0
        """CPU seconds that its last image took."""
        self.held_seconds = 0.0
        """Seconds that its last image has had it, as of the last check (`_check`)."""
        self.exit_code: int | None = None
        """How it ended, as `Template.reap` says; None: it was not reaped."""
        self._link = link
        self._file = file
        self._pidfd = _open_pidfd(pid)
        self._length = 0
        self._loop = asyncio.get_running_loop()
        self._seconds = 0.0
        self._killed_for: str | None = None
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

    async def decode(
        self, image: EncodedImage, max_seconds: float, patience: float
    ) -> tuple[int, bytes]:
        """Decode an image, and kill the process if that takes more than `max_seconds` of CPU time,
        or more than `patience` seconds in which the server ran: then its request has ended.

        Returns: 0 and the pixels, or a `Fault` and the repr of an exception. Not to be trusted.

        Raises:
            DecoderGone: The process had ended, or sent something, before.
            DecoderEnded: The process was killed, or crashed.
            OSError: There is no memory for a copy of the image.
        """
        self._check_silent()
        self.images += 1
        self.used_at = now = self._loop.time()
        self.held_seconds = 0.0
        self.is_busy = True
        began = self._cpu_seconds()
        wait = min(max_seconds, patience, MAX_WAIT)
        self._timer = self._loop.call_later(wait, self._check, began + max_seconds, patience, now)
        try:
            self._send(image)
            answer = await self._receive()
        finally:
            self.is_busy = False
            self._timer.cancel()
            self.image_seconds = self._cpu_seconds() - began
        if not answer:
            raise DecoderEnded(self._killed_for)
        return answer[0], answer[1:]

    def free_memory(self) -> None:
        """Tell it to return freed memory to the system, and free its copy of the last image."""
        self.used_at = None
        self._length = 0
        with suppress(OSError):
            os.truncate(self._file, 0)
            self._link.send(template.REQUEST.pack(0, 0, b"", 0, 0, 0))

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended. Where there are no pidfds, as outside Linux: True."""
        if self._pidfd is None:
            return True
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        return not ended.poll(0)

    def computes_for_itself(self) -> bool:
        """Whether it has used much CPU time since its last image ended."""
        before = self._seconds
        return self._cpu_seconds() - before > IDLE_CPU_SECONDS

    def kill(self) -> None:
        """Kill it. Its caller learns that it has ended."""
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            elif self.exit_code is None:  # otherwise its process id may be another's
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it, and close its descriptors."""
        self.kill()
        self._link.close()
        os.close(self._file)
        if self._pidfd is not None:
            os.close(self._pidfd)

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
        memory = image.memory + HEAP_MEMORY
        request = template.REQUEST.pack(length, memory, image.format.encode(), *size)
        try:
            self._link.send(request)
        except ConnectionError as error:
            raise DecoderGone from error

    async def _receive(self) -> bytes:
        """Its next message; empty: it has ended."""
        try:
            return await self._loop.sock_recv(self._link, template.MAX_MESSAGE)
        except ConnectionError:
            return b""

    def _check(self, max_cpu_seconds: float, patience: float, checked_at: float) -> None:
        """Kill it if it has used `max_cpu_seconds` since its start, or if its image has had it for
        `patience` seconds; otherwise check again later.

        Time in which it does not run, as on a busy machine, is not CPU time. If the server did not
        run since the last check, the decoder did probably not run either: that time does not count.
        """
        now = self._loop.time()
        self.held_seconds += min(now - checked_at, MAX_WAIT)
        cpu_left = max_cpu_seconds - self._cpu_seconds()
        time_left = patience - self.held_seconds
        if cpu_left <= 0 or time_left <= 0:
            self._killed_for = "cpu_time" if cpu_left <= 0 else "time"
            self.kill()
        else:
            wait = min(max(min(cpu_left, time_left), MIN_WAIT), MAX_WAIT)
            self._timer = self._loop.call_later(wait, self._check, max_cpu_seconds, patience, now)


def _open_pidfd(pid: int) -> int | None:
    """A descriptor of the process, which no other process gets after its end. None: there is none
    to be had, as outside Linux."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid)
    return None
