"""Batches on lanes with a fake backend, without MXNet."""

from __future__ import annotations

import asyncio
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
import pytest

from model_store import manifest
from model_store.backend import Backend
from model_store.device import Device, GpuMemory
from model_store.engine import LaneEngine
from model_store.lane import Lane
from model_store.manifest import BackendName, Parameters
from model_store.params import sha256, write_params
from tests.fakes import MODEL

IMAGES = [np.zeros((32, 32, 3), np.uint8)]


class FakeNetwork:
    """All logits are 0. `error` is raised once instead of computing."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def load(self, beside: bool) -> Iterator[None]:
        yield

    def compute(self, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return np.zeros((len(inputs), len(MODEL.classes)), np.float32)

    def close(self) -> None:
        pass


class FakeBackend:
    """Makes fake networks, and records on which threads the device's memory is read."""

    name: BackendName = "mxnet"
    device = Device("gpu:0", "as requested")
    normalizes = few_buckets = False

    def __init__(self) -> None:
        self.made: list[FakeNetwork] = []
        self.memory_read_on: list[str] = []

    def accelerator(self, precision: object) -> None:
        return None

    def networks(
        self, folder: object, model: object, precision: object, buckets: object, count: int
    ) -> list[FakeNetwork]:
        self.made = [FakeNetwork() for _ in range(count)]
        return self.made

    def gpu_memory(self) -> GpuMemory:
        self.memory_read_on.append(threading.current_thread().name)
        return GpuMemory(free=1, total=2)


class BrokenLane(Lane):
    """Raises in its first `failures` calls of `send`, as if no thread could be started."""

    failures = 0

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        super().__init__(thread)
        submit = self.send

        def send(call: Callable[[], None]) -> object:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            return submit(call)

        self.send = send


@pytest.fixture
def lane() -> Iterator[BrokenLane]:
    with ThreadPoolExecutor(1, thread_name_prefix="lane") as thread:
        yield BrokenLane(thread)


@pytest.fixture
def version(tmp_path: pathlib.Path) -> pathlib.Path:
    """A version in a store, with one parameter."""
    folder = tmp_path / MODEL.name / MODEL.version
    folder.mkdir(parents=True)
    path = folder / MODEL.parameters.file
    write_params(path, {"bias": np.zeros(1, np.float32)})
    described = Parameters(file=path.name, bytes=path.stat().st_size, sha256=sha256(path))
    manifest.write(folder, MODEL.model_copy(update={"parameters": described}))
    return folder


@asynccontextmanager
async def engine(
    version: pathlib.Path, *lanes: Lane
) -> AsyncIterator[tuple[LaneEngine, FakeBackend]]:
    """An engine with the version loaded in all lanes."""
    backend = FakeBackend()
    loaded = LaneEngine(cast(Backend, backend), 8, lanes, "fp32")
    await loaded.replace(version)
    yield loaded, backend
    await loaded.unload()


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), MemoryError(), StopIteration(), SystemExit(1), asyncio.CancelledError()],
)
async def test_infer_raises_what_a_network_raises(
    version: pathlib.Path, lane: BrokenLane, error: BaseException
) -> None:
    """Whatever a network raises fails its batch with an Exception; the next batch runs."""
    async with engine(version, lane) as (loaded, backend), asyncio.timeout(10):
        backend.made[0].error = error
        with pytest.raises((type(error), RuntimeError)) as caught:
            await loaded.infer(IMAGES)
        assert isinstance(caught.value, Exception)
        (row,) = await loaded.infer(IMAGES)
        assert isinstance(row, np.ndarray)


async def test_infer_forgets_a_batch_that_cannot_be_sent(
    version: pathlib.Path, lane: BrokenLane
) -> None:
    """A batch that could not be sent to a lane does not run in place of the next one."""
    async with engine(version, lane) as (loaded, _), asyncio.timeout(10):
        lane.failures = 2
        for _ in range(2):
            with pytest.raises(RuntimeError, match="thread"):
                await loaded.infer(IMAGES)
        for _ in range(3):
            (row,) = await loaded.infer(IMAGES)
            assert isinstance(row, np.ndarray)


async def test_engine_reads_gpu_memory_at_most_once_a_second(
    version: pathlib.Path, lane: BrokenLane
) -> None:
    """The engine reads the device's memory after a batch, on the lane's thread, at most once per
    second."""
    async with engine(version, lane) as (loaded, backend):
        began = time.monotonic()
        for _ in range(20):
            await loaded.infer(IMAGES)
        assert loaded.gpu_memory == GpuMemory(free=1, total=2)
        assert 1 <= len(backend.memory_read_on) <= 1 + (time.monotonic() - began)
        assert {name.partition("_")[0] for name in backend.memory_read_on} == {"lane"}


async def test_engine_reports_the_seconds_of_assembling(
    version: pathlib.Path, lane: BrokenLane
) -> None:
    """`on_assembled` gets the seconds that each batch took to assemble."""
    async with engine(version, lane) as (loaded, _):
        reported: list[float] = []
        loaded.on_assembled = reported.append
        for _ in range(3):
            await loaded.infer(IMAGES)
        assert len(reported) == 3 and min(reported) > 0


async def test_engine_takes_one_batch_more_than_it_has_lanes(lane: BrokenLane) -> None:
    """One batch waits for the first free lane."""
    loaded = LaneEngine(cast(Backend, FakeBackend()), 8, [lane] * 3)
    assert (loaded.lanes, loaded.max_in_flight) == (3, 4)
