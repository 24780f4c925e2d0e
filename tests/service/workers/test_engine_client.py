"""Tests what a front end gets from the engine process, and what it gets without one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from batching import DeadlineUnreachable, Draining, EngineFailed, QueueFull
from model_store.manifest import BadModel
from service.errors import (
    BadImage,
    DecodeQueueFull,
    EngineBusy,
    LoadFailed,
    NotReady,
    UnknownModel,
)
from service.workers import frames
from service.workers.connection import HIGH_WATER
from service.workers.engine_client import MAX_DECODE_BYTES, EngineClient
from service.workers.error_codec import Unexpected
from tests.fakes import MODEL, FakeEngine
from tests.service.workers.pair import Pair, encoded, image, outcomes
from tests.waiting import until


async def test_submit_returns_the_answer_of_the_engine(pair: Pair) -> None:
    """The answer has the probabilities, the model that returned them, and the durations."""
    async with pair.engine(), pair.front_end() as remote:
        answers = await asyncio.gather(*(remote.submit(image(red), 5) for red in range(8)))
        for red, answer in enumerate(answers):
            assert answer.value.model == MODEL
            assert np.argmax(answer.value.probabilities) == red
            assert answer.value.probabilities[red] == np.float32(0.91)
            assert answer.queue_seconds > 0 and answer.infer_seconds > 0
            assert answer.batch_size <= answer.bucket <= 8


async def test_engine_client_reports_model_and_stats(pair: Pair) -> None:
    """A front end knows which model serves, and its stats."""
    async with pair.engine(), pair.front_end() as remote:
        ours, theirs = remote.loaded, pair.local.loaded
        assert ours is not None and theirs is not None
        assert replace(ours, submit=theirs.submit) == theirs
        assert await remote.stats() == await pair.local.stats()


async def test_submit_raises_what_the_batcher_raised(pair: Pair, engine: FakeEngine) -> None:
    """The front end raises the batcher's exception, with its `retry_after`."""
    engine.warm_up_seconds = {8: [0.5] * 3}
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as remote:
        first = asyncio.create_task(remote.submit(image(0), 60))
        await until(engine.called.is_set)
        with pytest.raises(DeadlineUnreachable) as unreachable:
            await remote.submit(image(1), 0.3)
        assert 0 < unreachable.value.retry_after < 5
        waiting = [asyncio.create_task(remote.submit(image(1), 60)) for _ in range(8)]
        await pair.until_queued(8)
        with pytest.raises(QueueFull) as full:
            await remote.submit(image(2), 60)
        assert 0 < full.value.retry_after < 5
        engine.goes_on.set()
        await asyncio.gather(first, *waiting)
        await pair.local.batcher.drain()
        with pytest.raises(Draining):
            await remote.submit(image(3), 60)


async def test_submit_raises_the_failure_of_the_engine(pair: Pair, engine: FakeEngine) -> None:
    """When the engine fails on an item, the front end raises EngineFailed."""
    engine.error = RuntimeError("the fan is off")
    async with pair.engine(), pair.front_end() as remote:
        with pytest.raises(EngineFailed, match="the fan is off"):
            await remote.submit(image(0), 5)


async def test_submit_raises_timeout_at_the_deadline(pair: Pair, engine: FakeEngine) -> None:
    """The front end watches the deadline, also of an item that is being processed."""
    engine.seconds = 0.6
    engine.warm_up_seconds = {8: [0.001] * 3}
    async with pair.engine(), pair.front_end() as remote:
        with pytest.raises(TimeoutError):
            await remote.submit(image(0), 0.1)
        assert pair.local.batcher.in_flight == 1, "the engine has not ended yet"
        assert np.argmax((await remote.submit(image(1), 5)).value.probabilities) == 1


async def test_engine_client_reconnects(pair: Pair, engine: FakeEngine) -> None:
    """When the connection is lost, all requests raise NotReady, and the client connects again."""
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as remote:
        waiting = [asyncio.create_task(remote.submit(image(0), 60)) for _ in range(3)]
        await until(engine.called.is_set)
        for link in tuple(pair.hub.connections):
            link.close()
        assert [type(error) for error in await outcomes(waiting)] == [NotReady] * 3
        engine.goes_on.set()
        with pytest.raises(NotReady):
            await remote.submit(image(0), 5)
        assert await remote.stats() is None
        await until(lambda: remote.loaded)
        answer = await remote.submit(image(4), 5)
        assert np.argmax(answer.value.probabilities) == 4


async def test_submit_raises_not_ready_after_disconnect(pair: Pair) -> None:
    """After the connection was lost, nothing is sent on it."""
    async with pair.engine(), pair.front_end() as remote:
        assert remote._connection is not None
        remote._connection.disconnected()
        assert remote.loaded is None
        with pytest.raises(NotReady):
            await remote.submit(image(0), 5)


async def test_submit_raises_not_ready_before_the_model_is_loaded(pair: Pair) -> None:
    """Connected to an engine process without a model, a submit raises NotReady."""
    remote = EngineClient(str(pair.folder))
    async with pair.hub.serving(pair.address.dup()), remote.running():
        await until(lambda: pair.hub.connections)
        assert remote.loaded is None
        with pytest.raises(NotReady):
            await remote.submit(image(0), 5)


async def test_load_raises_what_the_repository_raised(pair: Pair, engine: FakeEngine) -> None:
    """A failed load raises LoadFailed, and the version that served goes on."""
    engine.load_error = BadModel("its SHA-256 differs")
    async with pair.engine(), pair.front_end() as remote:
        with pytest.raises(LoadFailed, match=r"SHA-256 differs.+7 stays loaded"):
            await remote.load("fake", "8")
        with pytest.raises(UnknownModel):
            await remote.load("other")
        with pytest.raises(Unexpected):
            await remote._call({"do": "dance"})
        assert pair.loads == ["failed"]
        assert (await remote.submit(image(7), 5)).value.model.version == "7"


async def test_submit_rejects_when_the_engine_does_not_read(pair: Pair) -> None:
    """A front end keeps a few MiB for an engine that does not read, and then raises EngineBusy."""
    remote = EngineClient(str(pair.folder))
    async with remote.running(), asyncio.timeout(30):
        accepted, _ = await asyncio.to_thread(pair.address.accept)
        with accepted:
            await until(lambda: remote._connection)
            fits = HIGH_WATER // frames.IMAGE_BYTES
            waiting = [asyncio.create_task(remote.submit(image(0), 30)) for _ in range(fits * 2)]
            connection = remote._connection
            assert connection is not None
            await until(lambda: connection.congested)
            with pytest.raises(EngineBusy):
                await remote.submit(image(0), 30)
            for task in waiting:
                task.cancel()
            await outcomes(waiting)


@pytest.mark.parametrize(
    "nonsense",
    [
        frames.answer(1, frames.Answer(0.1, 1, 1, 9, bytes(40))),
        frames.error(1, frames.Error(99, 0.0, "")),
        frames.submit(1, 1.0, bytes(frames.IMAGE_BYTES)),
        frames.message(frames.STATE, 0, {"started": {}}),
        frames.message(frames.MODEL, 1, {"name": "fake"}),
    ],
    ids=["no such model", "no such reason", "a submit", "half a state", "half a model"],
)
async def test_engine_client_closes_connections_with_bad_frames(
    pair: Pair, nonsense: bytes
) -> None:
    """A connection with bad frames is closed, and its requests raise NotReady."""
    remote = EngineClient(str(pair.folder))
    async with remote.running(), asyncio.timeout(10):
        accepted, _ = await asyncio.to_thread(pair.address.accept)
        with accepted:
            await until(lambda: remote._connection)
            waiting = asyncio.create_task(remote.submit(image(0), 5))
            await asyncio.sleep(0)
            accepted.sendall(nonsense)
            with pytest.raises(NotReady):
                await waiting


async def test_decoder_client_decodes_in_the_engine_process(pair: Pair) -> None:
    """The decoders get the image and its client, and the front end gets pixels or the exception."""
    async with pair.engine(), pair.front_end_decoders() as remote:
        sent = encoded(7, 1_000_000)
        assert (await remote.run(sent, b"client", 5) == 7).all()
        assert pair.decoders.asked == [(sent, b"client")]
        pair.decoders.error = BadImage("damaged")
        with pytest.raises(BadImage, match="damaged"):
            await remote.run(sent, b"client", 5)


async def test_decoder_client_limits_the_bytes_that_it_sends(pair: Pair) -> None:
    """Images beyond `MAX_DECODE_BYTES` are rejected: both processes hold a copy."""
    pair.decoders.goes_on.clear()
    async with pair.engine(), pair.front_end_decoders() as remote:
        large = encoded(1, MAX_DECODE_BYTES - 10)
        task = asyncio.create_task(remote.run(large, b"client", 60))
        await until(lambda: pair.decoders.asked)
        with pytest.raises(DecodeQueueFull):
            await remote.run(encoded(1), b"client", 60)
        pair.decoders.goes_on.set()
        await task
        await remote.run(encoded(1), b"client", 60)


async def test_decoder_client_counts_the_unsent_bytes_of_canceled_requests(pair: Pair) -> None:
    """Clients that upload and disconnect cannot fill a front end's memory while the engine process
    does not read."""
    async with pair.front_end_decoders() as remote, asyncio.timeout(30):
        accepted, _ = await asyncio.to_thread(pair.address.accept)
        with accepted:
            await until(lambda: remote._connection)
            large = encoded(1, MAX_DECODE_BYTES - 10)
            task = asyncio.create_task(remote.run(large, b"client", 60))
            await until(lambda: remote._connection and remote._connection.unsent_bytes)
            task.cancel()
            await outcomes([task])
            with pytest.raises(DecodeQueueFull):
                await remote.run(encoded(1, HIGH_WATER), b"client", 60)
