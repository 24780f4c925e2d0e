"""A lane: the decoder processes of one kind of images, and the images that wait for them.

The kinds are ordinary and expensive images (`service.decoding.limits`).
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from service.decoding.image import EncodedImage, Pixels
from service.decoding.launch import Template
from service.decoding.process import EXIT_SECONDS, DecoderProcess, StartFailed
from service.decoding.queue import FairQueue
from service.errors import DecodeQueueFull
from service.rate_limit import Client

MAX_UNDERESTIMATE = 4.0
"""Maximum ratio of the CPU time for decoding an image to the estimate of this time. The ratio of
ordinary photos is below 2.5."""
MAX_WAITING = 4096
"""Maximum number of waiting images of a lane."""
SLOW_START_SECONDS = 3.0
"""If a new decoder is not ready after this number of seconds, its start counts as failed."""


@dataclass(slots=True, eq=False)
class Job:
    """An image to decode."""

    image: EncodedImage
    """Image to decode."""
    client: Client
    """Client that sent the image."""
    seconds: float
    """Estimated CPU seconds of decoding the image."""
    deadline: float
    """Time when the pixels are needed, in seconds of the monotonic clock of `Decoders`."""
    answer: asyncio.Future[Pixels]
    """Future that receives the pixels or an exception."""
    spent: float = 0.0
    """CPU seconds of earlier attempts in the same lane that the client was not charged for yet."""
    suspect: Client | None = None
    """Client of the last image before this one in the decoder that failed. The image of this client
    may be the cause."""
    is_retry: bool = False
    """Whether the image is or was one of `Lane.retries` in its current lane."""


@dataclass(slots=True, eq=False)
class Lane:
    """The decoder processes of one kind of images, and the images that wait for them."""

    decoders: int
    """Number of decoder processes."""
    memory: int
    """Maximum number of bytes of memory of each decoder process."""
    max_seconds: float
    """Maximum CPU seconds for decoding an image in this lane."""
    min_seconds: float = 0.02
    """CPU seconds that decoding any image may take, even if its estimate is lower."""
    nicer: int = 0
    """Increment of the niceness of the decoder processes (nice(2))."""
    queue: FairQueue[Job] = field(default_factory=lambda: FairQueue(MAX_WAITING))
    """Images that wait for a decoder."""
    retries: deque[Job] = field(default_factory=deque)
    """Images that need a new decoder, because their decoders have ended or failed. The next new
    decoders decode these images first. There are as many new decoders as images."""
    processes: set[DecoderProcess] = field(default_factory=set)
    """Decoder processes that are ready to decode."""
    cannot_start: bool = False
    """Whether the latest start of a decoder failed or took too long."""
    _waiting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def is_busy(self) -> bool:
        return len(self.queue) > 0 or all(process.is_busy for process in self.processes)

    @property
    def is_down(self) -> bool:
        """Whether the lane has no decoder and cannot start a decoder."""
        return self.cannot_start and not self.has_decoder

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder is ready. Decoders that have ended do not count."""
        return any(process.is_usable for process in self.processes)

    @asynccontextmanager
    async def decoder(self, template: Template) -> AsyncIterator[Decoder]:
        """Start a decoder. The decoder is ready within the context, and is killed on exit.

        Raises StartFailed if no decoder can be started.
        """
        process = await self._start(template)
        try:
            yield Decoder(process, self, template)
        finally:
            self.processes.discard(process)
            process.close()
        await self.reap(template, process)

    async def reap(self, template: Template, process: DecoderProcess) -> int:
        """Wait for the end of `process`, and return its exit code (`Template.reap`).

        If the template has ended, the kernel has killed all its decoders. The result is then
        -SIGKILL.
        """
        with self._fails_if_slow():
            try:
                return await template.reap(process)
            except StartFailed:
                return -signal.SIGKILL

    async def _start(self, template: Template) -> DecoderProcess:
        """Start a decoder and wait until it is ready. Raises StartFailed."""
        try:
            with self._fails_if_slow():
                process = await template.fork(self.memory, self.nicer)
                try:
                    await process.ready()
                except BaseException as error:
                    process.close()
                    if isinstance(error, StartFailed):
                        await self.reap(template, process)
                    raise
        except StartFailed:
            self.mark_failed()
            raise
        self.cannot_start = False
        self.processes.add(process)
        return process

    @contextmanager
    def _fails_if_slow(self) -> Iterator[None]:
        """Mark the start of decoders as failed if the context takes too long.

        For example, the template, which decoders are forked from, may be suspended (SIGSTOP).
        """
        timer = asyncio.get_running_loop().call_later(SLOW_START_SECONDS, self.mark_failed)
        try:
            yield
        finally:
            timer.cancel()

    def mark_failed(self) -> None:
        """Record that decoders cannot be started now."""
        self.cannot_start = True

    def seconds_until_done(self, job: Job) -> float:
        """Return the estimated seconds until `job` is done if the job is added now."""
        shared = self.queue.seconds_until_done(job.client, job.seconds) / self.decoders
        return max(job.seconds, shared)

    def max_cpu_seconds(self, job: Job) -> float:
        """Return the maximum CPU seconds of `job`: a multiple of its estimate, within limits."""
        return min(self.max_seconds, max(self.min_seconds, MAX_UNDERESTIMATE * job.seconds))

    def put(self, job: Job) -> None:
        """Add `job` to the queue. Raises DecodeQueueFull."""
        displaced = self.queue.put(job, job.client, job.seconds)
        if displaced is not None and not displaced.answer.done():
            displaced.answer.set_exception(DecodeQueueFull())
        self._waiting.release()

    async def take(self, process: DecoderProcess) -> Job | None:
        """Wait for the next job for `process`. Returns None if `process` is not usable."""
        if self.retries and process.images == 0 and process.is_usable:
            return self.retries.popleft()
        while True:
            await self._waiting.acquire()
            if not process.is_usable:
                self._waiting.release()  # another decoder can take the job
                return None
            if (job := self.queue.take()) is not None:  # None: the job was discarded
                return job

    def check(self) -> None:
        """If a decoder is not usable, let all calls of `take` check their decoders."""
        if not all(process.is_usable for process in self.processes):
            for _ in self.processes:
                self._waiting.release()


@dataclass(slots=True, eq=False)
class Decoder:
    """A decoder process of a lane."""

    process: DecoderProcess
    lane: Lane
    template: Template
    """Process that `process` was forked from."""
    client: Client | None = None
    """Client of the last decoded image. None: no image was decoded."""
    is_shared: bool = False
    """Whether images of several clients were decoded."""

    def used_by(self, client: Client) -> None:
        """Record that an image of `client` was decoded."""
        self.is_shared = self.is_shared or self.client not in (None, client)
        self.client = client

    async def was_lost(self) -> bool:
        """Whether something outside the service has ended the process: an operator, the kernel
        when it ran out of memory, or the end of the template."""
        if not await self.process.has_exited():  # the process has closed its socket or sent data
            self.process.image_seconds += EXIT_SECONDS
            return False
        result = await self.lane.reap(self.template, self.process)
        return result == -signal.SIGKILL and not self.process.was_killed
