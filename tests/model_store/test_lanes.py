"""Batches on lanes, without MXNet: each `infer` ends, whatever a lane or a network raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from model_store.device import Device
from model_store.engine import GluonEngine, Lane
from model_store.network import Network
from tests.fakes import MODEL

IMAGES = [np.zeros((32, 32, 3), np.uint8)]


class FakeNetwork:
    """Every class of every image has the logit `number` of the batch; `error` is raised instead."""

    model = MODEL

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def assemble(self, images: Any) -> Any:
        return len(images)

    def compute(self, inputs: Any) -> Any:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return np.zeros((inputs, 10), np.float32)

    def probabilities(self, logits: Any) -> Any:
        return logits + np.float32(0.1)


class BrokenLane(Lane):
    """Cannot send `failures` times, as where no thread can be started."""

    failures = 0

    def send(self, call: Callable[[], None]) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("can't start new thread")
        super().send(call)


@pytest.fixture
def lane() -> Iterator[BrokenLane]:
    with ThreadPoolExecutor(1) as thread:
        yield BrokenLane(thread)


def engine(*lanes: Lane) -> tuple[GluonEngine, FakeNetwork]:
    network = FakeNetwork()
    made = GluonEngine(None, Device(None, "cpu", "as asked"), 8, lanes)
    made._networks = [cast(Network, network)] * len(lanes)
    return made, network


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), MemoryError(), StopIteration(), SystemExit(1), asyncio.CancelledError()],
)
async def test_whatever_a_network_raises_ends_its_batch(
    lane: BrokenLane, error: BaseException
) -> None:
    """As an exception of that call alone; the next batch is computed."""
    made, network = engine(lane)
    network.error = error
    async with asyncio.timeout(10):
        with pytest.raises((type(error), RuntimeError)) as caught:
            await made.infer(IMAGES)
    assert isinstance(caught.value, Exception)
    (row,) = await asyncio.wait_for(made.infer(IMAGES), 10)
    assert isinstance(row, np.ndarray)


async def test_a_batch_that_cannot_be_sent_is_forgotten(lane: BrokenLane) -> None:
    """Or the lane would compute it in place of the next batch, which would never be computed."""
    made, _ = engine(lane)
    lane.failures = 2
    for _ in range(2):
        with pytest.raises(RuntimeError, match="thread"):
            await made.infer(IMAGES)
    for _ in range(3):
        (row,) = await asyncio.wait_for(made.infer(IMAGES), 10)
        assert isinstance(row, np.ndarray)
