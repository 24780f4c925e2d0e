"""Attempts to decode an image, directly."""

from __future__ import annotations

import asyncio

import pytest

from service.decoding import attempts, lane
from service.decoding.image import Pixels
from service.decoding.trust import Trust
from service.errors import DecoderLost
from tests.fakes import Clock
from tests.service.decoding.fakes import ORDINARY


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_attempts_decode_an_image_again_once(clock: Clock) -> None:
    """The image fails if its second decoder is lost, too."""
    places = lane.Lane(decoders=1, memory=1, max_seconds=1.0)
    decoding = attempts.Attempts(places, places, Trust(), print, clock)
    answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
    job = lane.Job(ORDINARY, b"client", 1.0, 10.0, answer)
    decoding._try_again(job, places)
    assert [*places.retries] == [job] and not answer.done()
    assert places.retries.popleft() is job
    decoding._try_again(job, places)
    assert not places.retries
    assert isinstance(answer.exception(), DecoderLost)
