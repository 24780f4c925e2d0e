"""A lane: its queue, its limits on CPU time, and when it counts as down."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from service.decoding.image import Pixels
from service.decoding.lane import MAX_UNDERESTIMATE, Job, Lane
from service.decoding.launch import Template
from service.decoding.process import DecoderProcess, StartFailed
from service.decoding.queue import FairQueue
from service.errors import DecodeQueueFull
from tests.service.decoding.fakes import ORDINARY, FakeTemplate, Process


def lane(decoders: int = 2) -> Lane:
    return Lane(decoders=decoders, memory=1, max_seconds=1.0, min_seconds=0.02)


def job(client: bytes = b"client", seconds: float = 0.1) -> Job:
    answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
    return Job(ORDINARY, client, seconds, deadline=10.0, answer=answer)


@pytest.mark.parametrize(
    ("estimate", "limit"),
    [(0.001, 0.02), (0.005, 0.02), (0.1, 0.1 * MAX_UNDERESTIMATE), (0.25, 1.0), (9.0, 1.0)],
)
async def test_lane_limits_cpu_time_to_a_multiple_of_the_estimate(
    estimate: float, limit: float
) -> None:
    """Every image may take `min_seconds`, and none more than `max_seconds`."""
    assert lane().max_cpu_seconds(job(seconds=estimate)) == pytest.approx(limit)


async def test_lane_divides_its_queue_among_its_decoders() -> None:
    """Waiting images are decoded at the same time by all decoders, but a single image by one."""
    two = lane(decoders=2)
    assert two.seconds_until_done(job(seconds=0.5)) == 0.5
    for _ in range(3):
        two.put(job(seconds=0.5))
    assert two.seconds_until_done(job(seconds=0.5)) == pytest.approx(1.0)


async def test_lane_rejects_the_image_that_a_full_queue_displaces() -> None:
    """A client with many waiting images makes room for another client's image."""
    full = lane()
    full.queue = FairQueue(2)
    waiting = [job(b"many") for _ in range(2)]
    for one in waiting:
        full.put(one)
    full.put(other := job(b"other"))
    displaced = [one for one in waiting if one.answer.done()]
    assert len(displaced) == 1 and not other.answer.done()
    assert isinstance(displaced[0].answer.exception(), DecodeQueueFull)
    with pytest.raises(DecodeQueueFull):
        full.put(job(b"many"))


async def test_lane_does_not_take_a_discarded_image() -> None:
    """`take` waits for the next image instead."""
    places = lane()
    places.put(gone := job())
    places.put(kept := job())
    places.queue.discard(gone)
    process = cast(DecoderProcess, Process(FakeTemplate(), memory=1))
    assert await places.take(process) is kept
    waiting = asyncio.create_task(places.take(process))
    await asyncio.sleep(0)
    assert not waiting.done()
    places.put(late := job())
    assert await waiting is late


async def test_lane_gives_retries_to_new_decoders_only() -> None:
    """They precede the images of the queue."""
    places = lane()
    places.put(first := job())
    places.retries.append(retry := job())
    used, new, last = (cast(DecoderProcess, Process(FakeTemplate(), memory=1)) for _ in range(3))
    used.images = 1
    assert await places.take(used) is first
    places.put(second := job())
    assert await places.take(new) is retry
    assert await places.take(last) is second


def state(places: Lane) -> str:
    return "down" if places.is_down else "ready" if places.has_decoder else "empty"


async def test_lane_has_its_decoder_within_the_context() -> None:
    """The decoder is ready within the context, and closed and reaped after it."""
    places, fake = lane(), FakeTemplate()
    async with places.decoder(cast(Template, fake)) as decoder:
        assert places.processes == {decoder.process} and state(places) == "ready"
    assert not places.processes and state(places) == "empty"
    assert fake.events == ["fork", "close", "reap"]


async def test_lane_is_down_after_a_start_failed() -> None:
    """It is up again as soon as a decoder is ready."""
    places, fake = lane(), FakeTemplate()
    assert state(places) == "empty"  # nothing has failed yet
    fake.failures = 1
    with pytest.raises(StartFailed):
        async with places.decoder(cast(Template, fake)):
            pass
    assert state(places) == "down"
    async with places.decoder(cast(Template, fake)):
        assert state(places) == "ready"
    assert state(places) == "empty"


async def test_lane_reaps_a_decoder_that_ends_before_it_is_ready() -> None:
    """It is closed, and the start counts as failed."""
    places, fake = lane(), FakeTemplate()
    fake.unready = 1
    with pytest.raises(StartFailed):
        async with places.decoder(cast(Template, fake)):
            pass
    assert state(places) == "down" and not places.processes
    assert fake.events == ["fork", "close", "reap"]
