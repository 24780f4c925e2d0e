"""Decoders: threads for images that take too long for the event loop, and who may wait for one.

Promises
- An image is refused at once when, going by what such images took so far, it would not be decoded
  in time; so decoding never falls behind what is asked of it, however many ask.
- An idle thread is not kept from an image by what others took: only decoding can teach that images
  have become cheaper.
- Nothing is decoded whose caller has left or whose time is up.
- Images that are decoded at the same moment have at most `max_pixels` between them, so the
  memory for pixels is that of one image at the limit, however many threads there are.

First come, first served. All but the decoding itself happens on the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from batching import DeadlineUnreachable
from model_store.engine import Image
from service.decode import BadImage, ImageTooLarge

FIRST_GUESS = 25e-9
"""Seconds a pixel, of a format that nobody has sent yet: a PNG's (benchmarks/decode_cost.py)."""
LEARNING = 0.1
"""Weight of the latest image in what its format is taken to cost."""


class Upload(Protocol):
    """What is needed of an image that has not been decoded; `service.decode.Upload` is one."""

    @property
    def format(self) -> str: ...
    @property
    def pixels(self) -> int: ...
    def decode(self) -> Image: ...


@dataclass(slots=True, eq=False)
class _Job:
    upload: Upload
    deadline: float
    cost: float
    answer: asyncio.Future[Image]


class Decoders:
    def __init__(
        self, threads: int, max_pixels: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threads = threads
        self._max_pixels = max_pixels
        self._clock = clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._pixels = 0
        self._backlog = 0.0
        self._seconds_a_pixel: dict[str, float] = {}

    @property
    def waiting(self) -> int:
        """Images that wait for a thread."""
        return len(self._waiting)

    @property
    def backlog(self) -> float:
        """Seconds of decoding that were accepted and are not done, on one thread."""
        return self._backlog

    async def run(self, upload: Upload, max_seconds: float) -> Image:
        """`upload.decode()` on one of the threads, begun and ended within `max_seconds`.

        Raises DeadlineUnreachable at once, or later if images took longer than foreseen;
        TimeoutError; and what `decode` raises.
        """
        cost = upload.pixels * self._seconds_a_pixel.get(upload.format, FIRST_GUESS)
        late = self._backlog / self._threads + cost - max_seconds
        if late > 0 and (self._running or self._waiting):
            raise DeadlineUnreachable(f"decoding would end {late:.3g} s late", late)
        answer: asyncio.Future[Image] = asyncio.get_running_loop().create_future()
        job = _Job(upload, self._clock() + max_seconds, cost, answer)
        self._waiting.append(job)
        self._backlog += cost
        self._start()
        try:
            async with asyncio.timeout(max_seconds):
                return await answer
        finally:
            if job in self._waiting:
                self._waiting.remove(job)
                self._backlog -= cost
                self._start()
            del answer, job  # or a failure, whose traceback has this frame, would keep itself

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> None:
        """Begin what can begin."""
        loop, now = asyncio.get_running_loop(), self._clock()
        while self._waiting and self._running < self._threads:
            job = self._waiting[0]
            if job.answer.done():
                self._drop(job)
            elif (late := now + job.cost - job.deadline) > 0 and self._running:
                self._drop(job)
                failure = DeadlineUnreachable("images took longer than foreseen to decode", late)
                job.answer.set_exception(failure)
            elif self._running and self._pixels + job.upload.pixels > self._max_pixels:
                return  # there will be room when one of those under way has ended
            else:
                self._waiting.popleft()
                self._running += 1
                self._pixels += job.upload.pixels
                done = loop.run_in_executor(self._pool, _timed, job.upload)
                done.add_done_callback(functools.partial(self._ended, job))

    def _drop(self, job: _Job) -> None:
        self._waiting.remove(job)
        self._backlog -= job.cost

    def _ended(self, job: _Job, done: asyncio.Future[tuple[Image | Exception, float]]) -> None:
        self._running -= 1
        self._pixels -= job.upload.pixels
        self._backlog -= job.cost
        if done.cancelled():  # closed before it began
            job.answer.cancel()
            return
        image, seconds = done.result()
        known = self._seconds_a_pixel.get(job.upload.format, FIRST_GUESS)
        news = seconds / job.upload.pixels
        self._seconds_a_pixel[job.upload.format] = known + LEARNING * (news - known)
        if not job.answer.done():
            if isinstance(image, Exception):
                job.answer.set_exception(image)
            else:
                job.answer.set_result(image)
        self._start()


def _timed(upload: Upload) -> tuple[Image | Exception, float]:
    """The image, or why there is none, and the seconds it took; on one of the threads."""
    began = time.perf_counter()
    try:
        image: Image | Exception = upload.decode()
    except Exception as error:  # noqa: BLE001  # handed on to the caller
        image = error
        if isinstance(error, (BadImage, ImageTooLarge)):
            # Frames lead to the one that hands it over: it would keep itself, and the upload.
            error.__traceback__ = error.__cause__ = error.__context__ = None
    return image, time.perf_counter() - began
