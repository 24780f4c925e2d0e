"""The decoders of one kind, and the images that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from service.decoding.image import EncodedImage, Pixels
from service.decoding.launch import Template
from service.decoding.process import DecoderProcess, StartFailed
from service.decoding.queue import FairQueue
from service.errors import DecodeQueueFull
from service.rate_limit import Client

MAX_UNDERESTIMATE = 4.0
"""How many times its estimate an image may take. Those of ordinary photos are right within 2.5."""
MAX_WAITING = 4096
"""Maximum number of images that wait, of ordinary and of expensive ones each."""
SLOW_START_SECONDS = 3.0
"""Time that the start of a decoder takes after which it counts as failed, until it is ready."""


@dataclass(slots=True, eq=False)
class Job:
    image: EncodedImage
    client: Client
    seconds: float
    """Estimated CPU seconds."""
    deadline: float
    """In the time of the pool's clock, in seconds."""
    answer: asyncio.Future[Pixels]
    losses: int = 0
    """How many of its decoders were ended from outside."""


@dataclass(slots=True, eq=False)
class Lane:
    """Decoders of one kind, and the images that wait for them."""

    decoders: int
    """Number of processes."""
    memory: int
    """Bytes that each may take."""
    max_seconds: float
    """CPU time after which an image is too expensive for these decoders."""
    min_seconds: float = 0.02
    """CPU time that each image may take, however cheap its header says that it is."""
    nicer: int = 0
    """Increment of the niceness of the processes (nice(2))."""
    queue: FairQueue[Job] = field(default_factory=lambda: FairQueue(MAX_WAITING))
    processes: set[DecoderProcess] = field(default_factory=set)
    """Those that are ready."""
    cannot_start: bool = False
    """Whether the last decoder to be started failed to start, or is not ready in time."""
    _waiting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def is_busy(self) -> bool:
        return len(self.queue) > 0 or all(process.is_busy for process in self.processes)

    @property
    def is_down(self) -> bool:
        """Whether it has no decoder and none can be started."""
        return self.cannot_start and not self.has_decoder

    @property
    def has_decoder(self) -> bool:
        """Whether a decoder is ready. One that has ended is replaced when it is given an image."""
        return any(process.is_alive for process in self.processes)

    @asynccontextmanager
    async def decoder(self, template: Template) -> AsyncIterator[DecoderProcess]:
        """A decoder that is started now. It is ready within this context, and has ended after it.

        Raises StartFailed.
        """
        process = await self._start(template)
        try:
            yield process
        finally:
            self.processes.discard(process)
            process.close()
        with self._fails_if_slow():
            await _reap(template, process)

    async def _start(self, template: Template) -> DecoderProcess:
        """Raises StartFailed."""
        try:
            with self._fails_if_slow():
                process = await template.fork(self.memory, self.nicer)
                try:
                    await process.ready()
                except BaseException as error:
                    process.close()
                    if isinstance(error, StartFailed):
                        await _reap(template, process)
                    raise
        except StartFailed:
            self.mark_failed()
            raise
        self.cannot_start = False
        self.processes.add(process)
        return process

    @contextmanager
    def _fails_if_slow(self) -> Iterator[None]:
        """While this takes long, a decoder cannot be started: the template may be stopped."""
        timer = asyncio.get_running_loop().call_later(SLOW_START_SECONDS, self.mark_failed)
        try:
            yield
        finally:
            timer.cancel()

    def mark_failed(self) -> None:
        """Decoders cannot be started now."""
        self.cannot_start = True

    def seconds_until_done(self, job: Job) -> float:
        """Estimated seconds until `job` would be done if it were put now."""
        shared = self.queue.seconds_until_done(job.client, job.seconds) / self.decoders
        return max(job.seconds, shared)

    def max_cpu_seconds(self, job: Job) -> float:
        """CPU time that `job` may take: some times its estimate, within the bounds."""
        return min(self.max_seconds, max(self.min_seconds, MAX_UNDERESTIMATE * job.seconds))

    def put(self, job: Job) -> None:
        """Raises DecodeQueueFull."""
        displaced = self.queue.put(job, job.client, job.seconds)
        if displaced is not None and not displaced.answer.done():
            displaced.answer.set_exception(DecodeQueueFull())
        self._waiting.release()

    async def take(self) -> Job:
        """Wait for the next job."""
        while True:
            await self._waiting.acquire()
            if (job := self.queue.take()) is not None:  # None: it was discarded
                return job


async def _reap(template: Template, process: DecoderProcess) -> None:
    """Wait until `process`, which was killed, has ended."""
    with suppress(StartFailed):  # all decoders have ended with the template
        await template.reap(process)
