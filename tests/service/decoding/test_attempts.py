"""Attempts to decode an image, directly."""

from __future__ import annotations

import asyncio

import pytest

from service.decoding import attempts, lane
from service.decoding.image import Pixels
from service.decoding.trust import Trust
from tests.fakes import Clock
from tests.service.decoding.fakes import ORDINARY


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_attempts_put_an_image_back_once(clock: Clock) -> None:
    """Also where its decoder was lost and the template ended, one right after the other."""
    places = lane.Lane(decoders=1, memory=1, max_seconds=1.0)
    decoding = attempts.Attempts(places, places, Trust(), print, clock)
    answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
    job = lane.Job(ORDINARY, b"client", 1.0, 10.0, answer)
    places.put(job)
    decoding._try_again(job, places)
    assert places.queue.seconds_until_done(b"client", 1.0) == pytest.approx(2.0)
