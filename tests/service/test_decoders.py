"""Who may wait for a thread that decodes, and who is told at once that it is no use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from batching import DeadlineUnreachable
from model_store.engine import Image
from service.decode import BadImage
from service.decoders import FIRST_GUESS, Decoders
from tests.fakes import Clock

MEGAPIXEL = 1_000_000


class Upload:
    """Decodes when it is allowed to."""

    format = "PNG"

    def __init__(self, pixels: int = MEGAPIXEL, error: Exception | None = None) -> None:
        self.pixels = pixels
        self.begun = threading.Event()
        self.allowed = threading.Event()
        self._error = error

    def decode(self) -> Image:
        self.begun.set()
        self.allowed.wait(10)
        if self._error is not None:
            raise self._error
        return np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def decoders(clock: Clock) -> AsyncIterator[Decoders]:
    decoders = Decoders(2, 4 * MEGAPIXEL, clock)
    yield decoders
    decoders.close()


def ask(decoders: Decoders, upload: Upload, seconds: float = 10.0) -> asyncio.Task[Image]:
    return asyncio.create_task(decoders.run(upload, seconds))


async def begun(upload: Upload) -> bool:
    return await asyncio.to_thread(upload.begun.wait, 5)


async def test_what_it_decodes_and_what_it_raises(decoders: Decoders) -> None:
    """The image, or the image's own fault."""
    good, bad = Upload(), Upload(error=BadImage("torn"))
    for upload in good, bad:
        upload.allowed.set()
    assert (await decoders.run(good, 10)).shape == (32, 32, 3)
    with pytest.raises(BadImage, match="torn"):
        await decoders.run(bad, 10)


async def test_refused_at_once_when_it_would_be_late(decoders: Decoders) -> None:
    """What waits already, shared among the threads, and the image itself must fit the time."""
    cost = MEGAPIXEL * FIRST_GUESS
    uploads = [Upload() for _ in range(4)]
    tasks = [ask(decoders, upload) for upload in uploads]
    await asyncio.sleep(0)
    with pytest.raises(DeadlineUnreachable) as refused:
        await decoders.run(Upload(), 2.5 * cost)
    assert refused.value.retry_after == pytest.approx(0.5 * cost)
    in_time = ask(decoders, last := Upload(), 3.5 * cost)
    await asyncio.sleep(0)
    for upload in (*uploads, last):
        upload.allowed.set()
    assert len(await asyncio.gather(*tasks, in_time)) == 5


async def test_it_learns_what_a_format_takes(decoders: Decoders) -> None:
    """Slower than guessed: soon refused behind others, where the guess would have let it in."""
    for _ in range(20):
        slow = Upload(pixels=1000)
        task = ask(decoders, slow)
        await begun(slow)
        await asyncio.sleep(0.01)
        slow.allowed.set()
        await task
    task = ask(decoders, busy := Upload(pixels=1))
    await begun(busy)
    with pytest.raises(DeadlineUnreachable):
        await decoders.run(Upload(pixels=1000), 0.004)
    busy.allowed.set()
    await task
    tried = Upload(pixels=1000)
    tried.allowed.set()
    await decoders.run(tried, 0.004)  # an idle thread tries


async def test_nothing_is_decoded_for_who_has_left(decoders: Decoders) -> None:
    """It leaves the line, and those behind it do not wait for its sake."""
    running = [Upload(), Upload()]
    tasks = [ask(decoders, upload) for upload in running]
    gone, kept = Upload(), Upload()
    leaving, staying = ask(decoders, gone), ask(decoders, kept)
    await asyncio.sleep(0)
    assert decoders.waiting == 2
    leaving.cancel()
    await asyncio.sleep(0)
    assert decoders.waiting == 1
    for upload in (*running, kept):
        upload.allowed.set()
    await asyncio.gather(*tasks, staying)
    assert not gone.begun.is_set()


async def test_nothing_is_begun_that_cannot_end_in_time(decoders: Decoders, clock: Clock) -> None:
    """When others took longer than foreseen, who waited is told, and not decoded in vain."""
    running = [Upload(), Upload()]
    tasks = [ask(decoders, upload) for upload in running]
    late = Upload()
    waiting = ask(decoders, late, 1.0)
    await asyncio.sleep(0)
    clock.now = 0.99
    for upload in running:
        upload.allowed.set()
    await asyncio.gather(*tasks)
    with pytest.raises(DeadlineUnreachable):
        await waiting
    assert not late.begun.is_set()


async def test_its_time_runs_out(decoders: Decoders) -> None:
    """While it is decoded: TimeoutError, and the thread serves the next when it is free."""
    slow = Upload(pixels=1)
    with pytest.raises(TimeoutError):
        await decoders.run(slow, 0.05)
    slow.allowed.set()
    following = Upload()
    following.allowed.set()
    await decoders.run(following, 10)


async def test_pixels_in_decode_are_bounded(decoders: Decoders) -> None:
    """A free thread is no room for an image that would exceed the limit; nor is one refused."""
    large, other = Upload(3 * MEGAPIXEL), Upload(2 * MEGAPIXEL)
    first, second = ask(decoders, large), ask(decoders, other)
    await begun(large)
    await asyncio.sleep(0.05)
    assert not other.begun.is_set() and decoders.waiting == 1
    large.allowed.set()
    assert await begun(other)
    other.allowed.set()
    await asyncio.gather(first, second)


async def test_the_backlog_is_paid_off(decoders: Decoders) -> None:
    """Whatever becomes of images, in the end nothing of them weighs on the next."""
    uploads = [Upload(error=ValueError("torn") if k % 2 else None) for k in range(6)]
    tasks = [ask(decoders, upload) for upload in uploads]
    await asyncio.sleep(0)
    assert decoders.backlog == pytest.approx(6 * MEGAPIXEL * FIRST_GUESS)
    tasks[0].cancel()  # under way
    tasks[5].cancel()  # in line
    for upload in uploads:
        upload.allowed.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(decoders.close)
    await asyncio.sleep(0)
    assert decoders.waiting == 0 and decoders.backlog == pytest.approx(0)
