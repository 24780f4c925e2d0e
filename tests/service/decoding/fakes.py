"""A template and decoders that do what a test says, for tests without processes."""

from __future__ import annotations

import asyncio
import signal
from typing import cast

from service.decoding.image import EncodedImage
from service.decoding.process import DecoderProcess, StartFailed

PIXELS = bytes(32 * 32 * 3)


ANSWER = 0, PIXELS


Outcome = tuple[int, bytes] | Exception


class Process:
    """A decoder that takes as long as it is told to, and answers what it is told to."""

    def __init__(self, template: FakeTemplate, memory: int) -> None:
        self.memory = memory
        self.restrictions: list[str] = []
        self.used_at: float | None = None
        self.is_busy = False
        self.closed = self.was_killed = False
        self.is_usable = True
        self.images = 0
        self.image_seconds = 0.0
        self._template = template

    async def ready(self) -> None:
        await asyncio.sleep(0)
        if self._template.unready:
            self._template.unready -= 1
            raise StartFailed("a decoder process ended before it was ready")

    async def decode(
        self, image: EncodedImage, max_seconds: float, patience: float
    ) -> tuple[int, bytes]:
        template = self._template
        template.limits.append(max_seconds)
        self.images += 1
        self.is_busy = True
        template.begun.append((image, self))
        template.something_began.set()
        await template.goes_on.wait()
        self.is_busy = False
        self.image_seconds = template.seconds
        outcome = template.outcomes.pop(0) if template.outcomes else ANSWER
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def free_memory(self) -> None:
        self.used_at = None

    def computes_for_itself(self) -> bool:
        return self._template.unasked

    def kill(self) -> None:
        self.was_killed = True
        self.is_usable = False

    async def has_exited(self) -> bool:
        return self._template.exits

    def close(self) -> None:
        if not self.closed:
            self._template.events.append("close")
        self.closed = True


class FakeTemplate:
    """Forks the decoders above."""

    sample_seconds = 0.0056

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.outcomes: list[Outcome] = []
        """Of the images that are decoded next; then all go well."""
        self.seconds = 0.001
        self.exit_code = -signal.SIGSEGV
        """Of the decoders that end."""
        self.exits = True
        """Whether decoders that close their sockets exit."""
        self.limits: list[float] = []
        """CPU time that each image was allowed."""
        self.unasked = False
        """Whether decoders compute between two images."""
        self.failures = 0
        """How many more attempts to fork fail."""
        self.no_expensive = False
        """Whether decoders of expensive images cannot be forked."""
        self.unready = 0
        """How many more decoders end before they are ready."""
        self.forked: list[Process] = []
        self.begun: list[tuple[EncodedImage, Process]] = []
        self.events: list[str] = []
        """What was done to decoders: close, reap, fork."""
        self.goes_on, self.something_began = asyncio.Event(), asyncio.Event()
        self.goes_on.set()
        self.reaps = asyncio.Event()
        """Whether reaping goes on."""
        self.reaps.set()
        self.starts = asyncio.Event()
        """Whether forking goes on."""
        self.starts.set()

    @property
    def has_ended(self) -> bool:
        return self.ended.is_set()

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def fork(self, memory: int, nicer: int) -> DecoderProcess:
        if self.failures or (nicer and self.no_expensive):
            self.failures = max(0, self.failures - 1)
            raise StartFailed("the system allows no more processes")
        await self.starts.wait()
        self.events.append("fork")
        self.forked.append(Process(self, memory))
        return cast(DecoderProcess, self.forked[-1])

    async def reap(self, process: DecoderProcess) -> int:
        if self.has_ended:
            raise StartFailed("the template has ended")
        await self.reaps.wait()
        self.events.append("reap")
        return self.exit_code

    def close(self) -> None:
        pass


def image(pixels: int = 100_000, kind: str = "PNG") -> EncodedImage:
    return EncodedImage(b"bytes", kind, 1000, max(1, pixels // 1000), 64_000_000)


ORDINARY, EXPENSIVE = image(), image(10_000_000)
