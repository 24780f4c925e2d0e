"""Tests the life of a model: loading, batches, changes of the version, failures, and draining."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from batching import BatchReport, Draining, EngineDead, EngineFailed, QueueFull
from model_store.engine import Image, Probabilities, Results
from model_store.manifest import BadModel
from service.errors import NotReady, Unloaded
from service.exit_status import ExitStatus
from service.inference.model_host import WATCH_INTERVAL, ModelHost, exit_status
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.batching.virtual_time import virtual_time
from tests.fakes import FakeEngine
from tests.service.v2.test_repository import add
from tests.waiting import until

IMAGE = np.zeros((32, 32, 3), np.uint8)


class Counts:
    """Counts batches."""

    def __init__(self) -> None:
        self.reports: list[BatchReport] = []
        self.assemblies: list[float] = []

    def count_batch(self, report: BatchReport) -> None:
        self.reports.append(report)

    def count_assembly(self, seconds: float) -> None:
        self.assemblies.append(seconds)


class Hosted:
    """A model host with a fake engine, and what it has reported."""

    def __init__(self, engine: FakeEngine, **settings: int) -> None:
        self.events: list[str] = []
        self.counts = Counts()
        self.host = ModelHost(
            Settings(**settings),  # type: ignore[arg-type]  # numbers
            engine.load,
            self.counts,
            on_failure=lambda: self.events.append("failure"),
            on_change=lambda: self.events.append("change"),
            on_failing=lambda: self.events.append("failing"),
        )

    def submit(self) -> asyncio.Task[str]:
        """Submit an image. Returns the version that classifies it."""

        async def version() -> str:
            return (await self.host.batcher.submit(IMAGE, 60)).value.model.version

        return asyncio.create_task(version())


@asynccontextmanager
async def serving(engine: FakeEngine, **settings: int) -> AsyncIterator[Hosted]:
    hosted = Hosted(engine, **settings)
    async with hosted.host.running():
        await until(lambda: hosted.host.loaded)
        try:
            yield hosted
        finally:  # so that the host can end
            engine.goes_on.set()
            engine.loaded.set()


@pytest.fixture
def version_8(tmp_path: pathlib.Path) -> pathlib.Path:
    add(tmp_path, "8")
    return tmp_path / "fake" / "8"


async def test_model_host_loads_in_the_background() -> None:
    """The block begins before the model is loaded. Until then, requests get NotReady."""
    load = asyncio.Event()

    class Slow(FakeEngine):
        @asynccontextmanager
        async def load(self, settings: Settings) -> AsyncIterator[FakeEngine]:
            await load.wait()
            yield self

    hosted = Hosted(Slow())
    async with hosted.host.running():
        with pytest.raises(NotReady) as caught:
            await hosted.submit()
        assert caught.type is NotReady and await hosted.host.stats() is None
        with pytest.raises(NotReady):
            await hosted.host.unload()
        load.set()
        await until(lambda: hosted.host.loaded)
        assert await hosted.submit() == "7"
    assert hosted.events == ["change"]


async def test_model_host_reports_a_model_that_does_not_load() -> None:
    """`on_failure` is called once, and `failure` says why the model cannot be served."""

    class Broken(FakeEngine):
        @asynccontextmanager
        async def load(self, settings: Settings) -> AsyncIterator[FakeEngine]:
            if self.load_error is not None:
                raise self.load_error
            yield self

    engine = Broken()
    engine.load_error = BadModel("its SHA-256 differs")
    hosted = Hosted(engine)
    async with hosted.host.running():
        await until(lambda: hosted.events)
    assert hosted.events == ["failure"]
    assert isinstance(hosted.host.failure, BadModel) and not hosted.host.dead


async def test_model_host_counts_batches_and_their_assembly() -> None:
    """Each batch is counted with its size, and so are the seconds of assembling it."""
    engine = FakeEngine()
    async with serving(engine) as hosted:
        await asyncio.gather(*(hosted.submit() for _ in range(12)))
    assert [report.size for report in hosted.counts.reports] == engine.batches == [8, 4]
    assert hosted.counts.assemblies == [1e-6, 1e-6]


async def test_model_host_limits_the_queue() -> None:
    """The queue holds `max_queue_size` images, besides those that the engine computes."""
    engine = FakeEngine()
    engine.goes_on.clear()
    async with serving(engine, max_queue_size=2) as hosted:
        first = hosted.submit()
        await engine.called.wait()
        waiting = [hosted.submit() for _ in range(2)]
        await until(lambda: hosted.host.batcher.queued == 2)
        with pytest.raises(QueueFull):
            await hosted.submit()
        engine.goes_on.set()
        await asyncio.gather(first, *waiting)


async def test_model_host_drains_at_the_end() -> None:
    """When the block ends, accepted requests are answered, and no change is accepted any more."""
    engine, end = FakeEngine(), asyncio.Event()
    engine.goes_on.clear()
    hosted = Hosted(engine)

    async def serve() -> None:
        async with hosted.host.running():
            await end.wait()

    served = asyncio.create_task(serve())
    await until(lambda: hosted.host.loaded)
    accepted = [hosted.submit() for _ in range(12)]
    await engine.called.wait()
    end.set()
    while True:  # until the block has ended
        await asyncio.sleep(0)
        rejected = hosted.submit()
        done, _ = await asyncio.wait({rejected}, timeout=0.01)
        if done:
            break
        accepted.append(rejected)
    with pytest.raises(Draining):
        await rejected
    with pytest.raises(Draining):
        await hosted.host.unload()
    assert not served.done()
    engine.goes_on.set()
    await served
    assert await asyncio.gather(*accepted) == ["7"] * len(accepted)


async def test_model_host_replaces_the_version_between_two_batches(
    version_8: pathlib.Path,
) -> None:
    """The batch in the engine is run by the old version, and the queue by the new one, with
    the latencies of its warm-up."""
    engine = FakeEngine()
    engine.goes_on.clear()
    async with serving(engine) as hosted:
        first = hosted.submit()
        await engine.called.wait()
        waiting = [hosted.submit() for _ in range(3)]
        await until(lambda: hosted.host.batcher.queued == 3)
        batcher = hosted.host.batcher
        engine.warm_up_seconds = {size: [size / 8] * 3 for size in (1, 2, 4, 8)}
        assert (await hosted.host.replace(version_8)).version == "8"
        stats = await hosted.host.stats()
        assert stats is not None and stats.queued == 3
        assert stats.expected == {"1": 0.125, "2": 0.25, "4": 0.5, "8": 1.0}
        assert hosted.host.batcher is batcher and hosted.host.loaded
        assert hosted.host.loaded.model.version == "8"
        engine.goes_on.set()
        assert await asyncio.gather(first, *waiting) == ["7", "8", "8", "8"]
    assert hosted.events == ["change", "change"]


async def test_model_host_keeps_the_version_if_another_cannot_be_loaded(
    version_8: pathlib.Path,
) -> None:
    """If the new version cannot be loaded, the old one goes on, and nothing is being loaded."""
    engine = FakeEngine()
    engine.load_error = BadModel("damaged")
    engine.loaded.clear()
    async with serving(engine) as hosted:
        before = hosted.host.loaded
        replacing = asyncio.create_task(hosted.host.replace(version_8))
        await engine.loading.wait()
        loading = hosted.host.loading
        engine.loaded.set()
        with pytest.raises(BadModel):
            await replacing
        assert (loading, hosted.host.loading) == ("8", None)
        assert hosted.host.loaded is before
        assert hosted.events == ["change"]
        assert await hosted.submit() == "7"


async def test_model_host_unloads_after_accepted_requests(version_8: pathlib.Path) -> None:
    """An unload rejects new requests immediately, answers the accepted ones, and frees the memory
    afterwards. The next `replace` serves again."""
    engine = FakeEngine()
    engine.goes_on.clear()
    async with serving(engine) as hosted:
        accepted = [hosted.submit() for _ in range(12)]
        await engine.called.wait()
        unloading = asyncio.create_task(hosted.host.unload())
        await until(lambda: hosted.host.unloaded)
        assert hosted.host.loaded is None and hosted.events == ["change", "change"]
        with pytest.raises(Unloaded):
            await hosted.submit()
        unloaded = engine.unloaded
        engine.goes_on.set()
        assert await asyncio.gather(*accepted) == ["7"] * 12
        assert (await unloading).version == "7"
        assert (unloaded, engine.unloaded) == (False, True), "not while the engine computes"
        assert await hosted.host.stats() is None
        with pytest.raises(Unloaded):
            await hosted.host.unload()
        await hosted.host.replace(version_8)
        assert not hosted.host.unloaded
        assert await hosted.submit() == "8"


async def test_model_host_ends_after_a_change_in_progress(version_8: pathlib.Path) -> None:
    """The engine is not closed while it loads a version."""
    engine = FakeEngine()
    engine.loaded.clear()
    hosted = Hosted(engine)
    async with hosted.host.running():
        await until(lambda: hosted.host.loaded)
        replacing = asyncio.create_task(hosted.host.replace(version_8))
        await engine.loading.wait()
        asyncio.get_running_loop().call_later(0.01, engine.loaded.set)
    assert replacing.done() and replacing.result().version == "8"


@virtual_time
async def test_model_host_reports_an_engine_that_keeps_failing() -> None:
    """While the engine fails on every recent batch, `on_failing` is called once per second. It is
    not called any more when the engine computes again."""
    engine = FakeEngine(error=RuntimeError("broken"))
    async with serving(engine) as hosted:
        await asyncio.sleep(3 * WATCH_INTERVAL)
        assert hosted.events == ["change"], "it has not failed yet"
        for _ in range(10):
            with pytest.raises(EngineFailed):
                await hosted.submit()
        await asyncio.sleep(3 * WATCH_INTERVAL)
        assert hosted.events == ["change", "failing", "failing", "failing"]
        engine.error = None
        await hosted.submit()
        await asyncio.sleep(3 * WATCH_INTERVAL)
        assert hosted.events.count("failing") == 3


@pytest.mark.parametrize(
    ("failure", "status", "logged"),
    [
        (None, ExitStatus.STOPPED, []),
        (EngineDead("gone"), ExitStatus.ENGINE_DEAD, []),
        (BadModel("damaged"), ExitStatus.FAILED, ["the model cannot be loaded: damaged"]),
    ],
)
def test_exit_status_depends_on_the_failure(
    failure: Exception | None,
    status: ExitStatus,
    logged: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A model that cannot be served is logged. A dead engine has its own status, and was logged
    before."""
    assert exit_status(failure) == status
    assert [record.message for record in caplog.records] == logged


@pytest.mark.parametrize(("lanes", "in_flight"), [(1, 1), (1, 2), (3, 2), (3, 4)])
async def test_model_host_keeps_as_many_batches_in_flight_as_the_engine_takes(
    lanes: int, in_flight: int
) -> None:
    """The model host hands over `max_in_flight` batches at the same time."""
    engine = FakeEngine()
    engine.lanes, engine.max_in_flight = lanes, in_flight
    engine.goes_on.clear()
    async with serving(engine) as hosted:
        requests = [hosted.submit() for _ in range(48)]
        await until(lambda: len(engine.batches) == in_flight)
        await asyncio.sleep(0.02)  # a batch too many would begin
        stats = await hosted.host.stats()
        assert stats is not None and stats.in_flight == in_flight
        assert engine.batches == [8] * in_flight
        engine.goes_on.set()
        await asyncio.gather(*requests)


async def test_model_host_learns_durations_from_the_time_of_the_engine() -> None:
    """The duration of a batch ends when the engine was done, not when the event loop is told so."""
    started = asyncio.Event()

    class Prompt(FakeEngine):
        async def infer(self, images: Sequence[Image]) -> Results[Probabilities | Exception]:
            done = time.monotonic() + 0.001
            return Results(await super().infer(images), done)

    engine = Prompt(seconds=0.05)
    local = ModelHost(Settings(), engine.load, Metrics(), lambda: None, on_change=started.set)
    async with local.running():
        await asyncio.wait_for(started.wait(), 5)
        for _ in range(5):
            await local.batcher.submit(np.zeros((32, 32, 3), np.uint8), 5.0)
        stats = await local.stats()
    assert stats is not None and stats.expected["1"] < 0.01
