"""An engine's lanes, and the batcher in front of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from model_store.engine import Image, Probabilities, Results
from service.inference.model_host import ModelHost
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.fakes import FakeEngine


@pytest.mark.parametrize(("lanes", "in_flight"), [(1, 1), (1, 2), (3, 2), (3, 4)])
async def test_as_many_batches_are_in_flight_as_the_engine_takes(
    lanes: int, in_flight: int
) -> None:
    """The model host hands over `max_in_flight` batches at the same time."""
    started = asyncio.Event()
    engine = FakeEngine(seconds=0.2)
    engine.lanes, engine.max_in_flight = lanes, in_flight
    local = ModelHost(Settings(), engine.load, Metrics(), lambda: None, on_change=started.set)
    async with local.running():
        await asyncio.wait_for(started.wait(), 5)
        image = np.zeros((32, 32, 3), np.uint8)
        callers = [asyncio.create_task(local.batcher.submit(image, 5.0)) for _ in range(32)]
        await asyncio.wait({*callers}, timeout=0.05)
        figures = await local.stats()
        assert figures is not None and figures.in_flight == in_flight
        assert engine.batches == [8] * in_flight
        await asyncio.gather(*callers)


async def test_the_batcher_hears_when_the_engine_was_done() -> None:
    """Not when the event loop, which may be at work, got to know of it."""
    started = asyncio.Event()

    class Prompt(FakeEngine):
        async def infer(self, images: Sequence[Image]) -> Results[Probabilities | Exception]:
            done = time.monotonic() + 0.001
            return Results(await super().infer(images), done)

    engine = Prompt(seconds=0.1)
    local = ModelHost(Settings(), engine.load, Metrics(), lambda: None, on_change=started.set)
    async with local.running():
        await asyncio.wait_for(started.wait(), 5)
        for _ in range(5):
            await local.batcher.submit(np.zeros((32, 32, 3), np.uint8), 5.0)
        figures = await local.stats()
    assert figures is not None and figures.expected["1"] < 0.01
