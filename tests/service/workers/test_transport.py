"""Both ends of the socket in one process: what a front end submits, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from batching import DeadlineUnreachable, Draining, EngineFailed, QueueFull
from model_store.engine import Image
from model_store.manifest import BadModel, Identity
from service.decoding.image import EncodedImage, Pixels
from service.decoding.limits import Limits
from service.errors import (
    BadImage,
    DecodeQueueFull,
    EngineBusy,
    LoadFailed,
    NotReady,
    UnknownModel,
    Unloaded,
)
from service.inference.model_host import ModelHost
from service.inference.repository import Repository
from service.inference.service import Classification
from service.rate_limit import Client
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.workers import frames
from service.workers.connection import HIGH_WATER, FrameConnection
from service.workers.engine_client import MAX_DECODE_BYTES, SOCKET, DecoderClient, EngineClient
from service.workers.engine_server import EngineServer
from service.workers.error_codec import Unexpected
from tests.fakes import MODEL, FakeEngine
from tests.service.v2.test_repository import add
from tests.waiting import until

LIMITS = Limits(ordinary=1, expensive=1, expensive_memory=2**29, max_seconds=1.0)


def image(red: int) -> Image:
    return np.full((32, 32, 3), red, np.uint8)


class FakeDecoders:
    """Decodes an image to its width, when it may; raises what it is told to."""

    max_memory = LIMITS.expensive_memory
    waiting = 0
    is_down = False

    def __init__(self) -> None:
        self.asked: list[tuple[EncodedImage, Client]] = []
        self.error: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.canceled = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def run(self, image: EncodedImage, client: Client, max_seconds: float) -> Pixels:
        self.asked.append((image, client))
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        if self.error is not None:
            raise self.error
        return np.full((32, 32, 3), image.width, np.uint8)


class Pair:
    """An engine's process and its front ends, as far as sockets can tell."""

    def __init__(self, folder: pathlib.Path, engine: FakeEngine, settings: Settings) -> None:
        self.folder = folder
        self.loads: list[str] = []
        self.local = ModelHost(
            settings,
            engine.load,
            Metrics(),
            on_failure=lambda: None,
            on_change=lambda: self.hub.announce(),
        )
        self.decoders = FakeDecoders()
        repository = Repository(settings, self.local, self.loads.append)
        self.hub = EngineServer(self.local, repository, self.decoders)
        self.address = socket.socket(socket.AF_UNIX)
        self.address.bind(str(folder / SOCKET))
        self.address.listen()

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[None]:
        async with self.hub.serving(self.address.dup()), self.local.running():
            yield

    @asynccontextmanager
    async def front_end(self) -> AsyncIterator[EngineClient]:
        remote = EngineClient(str(self.folder))
        async with remote.running():
            await until(lambda: remote.loaded)
            yield remote

    @asynccontextmanager
    async def front_end_decoders(self) -> AsyncIterator[DecoderClient]:
        remote = DecoderClient(str(self.folder), LIMITS)
        async with remote.running():
            await until(lambda: remote._connection)
            yield remote

    async def until_queued(self, count: int) -> None:
        await until(lambda: self.local.batcher.queued == count)


async def outcomes(tasks: Iterable[asyncio.Task[Any]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def pair(tmp_path: pathlib.Path, engine: FakeEngine) -> Iterator[Pair]:
    for version in "7", "8":
        add(tmp_path, version)
    settings = Settings(model="fake", model_version="7", model_store=tmp_path, max_queue_size=8)
    pair = Pair(tmp_path, engine, settings)
    with pair.address:
        yield pair


async def test_submit_returns_the_answer_of_the_engine(pair: Pair) -> None:
    """The answer has the probabilities, the model that computed them, and the durations."""
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


async def test_engine_server_batches_across_front_ends(pair: Pair, engine: FakeEngine) -> None:
    """Images of several front ends are computed in one batch."""
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as one, pair.front_end() as two:
        first = asyncio.create_task(one.submit(image(0), 60))
        await until(engine.called.is_set)
        both = [remote for remote in (one, two) for _ in range(4)]
        rest = [asyncio.create_task(remote.submit(image(1), 60)) for remote in both]
        await pair.until_queued(8)
        engine.goes_on.set()
        await asyncio.gather(first, *rest)
    assert engine.batches == [1, 8]


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


class Unprintable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Odd(FakeEngine):
    """Gives what is no row, as often as told."""

    odd = 0

    async def infer(self, images: Sequence[Image]) -> Sequence[Any]:
        rows = await super().infer(images)
        if self.odd:
            self.odd -= 1
            return ["no row"] * len(rows)
        return rows


async def test_engine_server_reports_an_answer_that_cannot_be_sent(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The request fails at once, the log has the cause, and the next request is answered."""
    settings = Settings(model="fake", model_version="7", model_store=tmp_path)
    engine = Odd()
    engine.odd = 1
    pair = Pair(tmp_path, engine, settings)
    with pair.address:
        async with pair.engine(), pair.front_end() as remote, asyncio.timeout(10):
            with pytest.raises(Unexpected):
                await remote.submit(image(1), 60)
            assert "could not convert string to float" in caplog.text
            assert np.argmax((await remote.submit(image(1), 60)).value.probabilities) == 1


async def test_engine_server_closes_a_connection_when_an_error_cannot_be_sent(
    pair: Pair, engine: FakeEngine
) -> None:
    """All requests on the connection fail, and the next connection works."""
    async with pair.engine(), pair.front_end() as remote, asyncio.timeout(10):
        engine.error = Unprintable()
        with pytest.raises(NotReady):
            await remote.submit(image(4), 60)
        engine.error = None
        await until(lambda: remote.loaded)
        assert np.argmax((await remote.submit(image(4), 60)).value.probabilities) == 4


class BrokenTransport(asyncio.Transport):
    """Cannot write."""

    aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise MemoryError

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("arrives", [b"", frames.message(frames.STATE, 0, {})])
async def test_frame_connection_closes_when_it_fails(arrives: bytes) -> None:
    """A connection that cannot write, or whose subclass raises, is closed, so that its requests
    end."""

    class Broken(FrameConnection):
        def frame_received(self, frame: frames.Frame) -> None:
            raise LookupError

    link, transport = Broken(), BrokenTransport()
    link.connection_made(transport)
    if arrives:
        link.data_received(arrives)
    else:
        link.send(b"frame")
        await asyncio.sleep(0)
    assert transport.aborted


async def test_submit_raises_timeout_at_the_deadline(pair: Pair, engine: FakeEngine) -> None:
    """The front end watches the deadline, also of an item that is being computed."""
    engine.seconds = 0.6
    engine.warm_up_seconds = {8: [0.001] * 3}
    async with pair.engine(), pair.front_end() as remote:
        with pytest.raises(TimeoutError):
            await remote.submit(image(0), 0.1)
        assert pair.local.batcher.in_flight == 1, "the engine has not ended yet"
        assert np.argmax((await remote.submit(image(1), 5)).value.probabilities) == 1


async def test_canceled_item_leaves_the_queue(pair: Pair, engine: FakeEngine) -> None:
    """A canceled item leaves the queue of the engine process and is not computed."""
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as remote:
        first = asyncio.create_task(remote.submit(image(0), 60))
        await until(engine.called.is_set)
        gone, kept = (asyncio.create_task(remote.submit(image(1), 60)) for _ in range(2))
        await pair.until_queued(2)
        gone.cancel()
        await pair.until_queued(1)
        engine.goes_on.set()
        await asyncio.gather(first, kept)
    assert engine.batches == [1, 1]


async def test_items_of_a_lost_front_end_leave_the_queue(pair: Pair, engine: FakeEngine) -> None:
    """When a front end disconnects, its items leave the queue, and those of others stay."""
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as kept:
        first = asyncio.create_task(kept.submit(image(0), 60))
        await until(engine.called.is_set)
        async with pair.front_end() as gone:
            lost = [asyncio.create_task(gone.submit(image(1), 60)) for _ in range(5)]
            stays = asyncio.create_task(kept.submit(image(2), 60))
            await pair.until_queued(6)
        await pair.until_queued(1)
        engine.goes_on.set()
        assert [type(error) for error in await outcomes(lost)] == [NotReady] * 5
        assert np.argmax((await stays).value.probabilities) == 2
        await first
    assert engine.batches == [1, 1]


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


async def test_load_changes_the_version_of_all_front_ends(pair: Pair) -> None:
    """A version that one front end loads serves for all, and answers name their version."""
    async with pair.engine(), pair.front_end() as one, pair.front_end() as two:
        assert await one.load("fake", "8") == Identity(name="fake", version="8")
        assert pair.loads == ["loaded"]
        for remote in (one, two):
            answer = await remote.submit(image(7), 5)
            assert answer.value.model.version == "8"
            assert remote.loaded and remote.loaded.model == answer.value.model
        index = {version["version"]: version["state"] for version in await two.index()}
        assert index == {"7": "UNAVAILABLE", "8": "READY"}
        assert (await two.reload()).version == "7"
        assert (await one.submit(image(7), 5)).value.model.version == "7"


async def test_answer_names_the_version_that_computed_it(pair: Pair, engine: FakeEngine) -> None:
    """A batch of the old version answers with its name after another version was loaded."""
    engine.goes_on.clear()
    async with pair.engine(), pair.front_end() as remote:
        old = asyncio.create_task(remote.submit(image(7), 5))
        await until(engine.called.is_set)
        await remote.load("fake", "8")
        new = asyncio.create_task(remote.submit(image(7), 5))
        engine.goes_on.set()
        assert (await old).value.model.version == "7"
        assert (await new).value.model.version == "8"


async def test_unload_unloads_for_all_front_ends(pair: Pair) -> None:
    """A model that one front end unloads is unloaded for all, and they raise Unloaded."""
    async with pair.engine(), pair.front_end() as one, pair.front_end() as two:
        await one.unload("fake")
        await until(lambda: two.loaded is None)
        assert one.unloaded and two.unloaded
        with pytest.raises(Unloaded):
            await two.submit(image(0), 5)
        assert await two.stats() is None
        await two.load("fake", "7")
        await until(lambda: one.loaded)
        assert not one.unloaded


async def test_load_raises_what_the_repository_raised(pair: Pair, engine: FakeEngine) -> None:
    """A failed load raises LoadFailed, and the version that served goes on."""
    engine.load_error = BadModel("its SHA-256 differs")
    async with pair.engine(), pair.front_end() as remote:
        with pytest.raises(LoadFailed, match=r"SHA-256 differs.+7 still serves"):
            await remote.load("fake", "8")
        with pytest.raises(UnknownModel):
            await remote.load("other")
        with pytest.raises(Unexpected):
            await remote._call({"do": "dance"})
        assert pair.loads == ["failed"]
        assert (await remote.submit(image(7), 5)).value.model.version == "7"


async def test_submit_raises_not_ready_before_the_model_is_loaded(pair: Pair) -> None:
    """Connected to an engine process without a model, a submit raises NotReady."""
    remote = EngineClient(str(pair.folder))
    async with pair.hub.serving(pair.address.dup()), remote.running():
        await until(lambda: pair.hub.connections)
        assert remote.loaded is None
        with pytest.raises(NotReady):
            await remote.submit(image(0), 5)


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
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        frames.answer(1, frames.Answer(0.1, 1, 1, 1, b"")),
        frames.submit(1, float("nan"), bytes(frames.IMAGE_BYTES)),
        2 * frames.submit(1, 1e9, bytes(frames.IMAGE_BYTES)),
    ],
    ids=["http", "an answer", "no deadline", "a number twice"],
)
async def test_engine_server_closes_connections_with_bad_frames(
    pair: Pair, engine: FakeEngine, nonsense: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection with bad frames is closed and logged, and others are served."""
    async with pair.engine(), pair.front_end() as remote:
        reader, writer = await asyncio.open_unix_connection(str(pair.folder / SOCKET))
        writer.write(nonsense)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass
        writer.close()
        assert "connection between two processes failed" in caplog.text
        assert isinstance((await remote.submit(image(1), 5)).value, Classification)


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


def encoded(width: int, size: int = 100) -> EncodedImage:
    return EncodedImage(bytes(size), "WebP lossless", width, 1, 64_000_000)


async def test_decoder_client_decodes_in_the_engine_process(pair: Pair) -> None:
    """The decoders get the image and its client, and the front end gets pixels or the exception."""
    async with pair.engine(), pair.front_end_decoders() as remote:
        sent = encoded(7, 1_000_000)
        assert (await remote.run(sent, b"client", 5) == 7).all()
        assert pair.decoders.asked == [(sent, b"client")]
        pair.decoders.error = BadImage("damaged")
        with pytest.raises(BadImage, match="damaged"):
            await remote.run(sent, b"client", 5)


async def test_decoding_is_canceled_with_its_request(pair: Pair) -> None:
    """Decoding ends when its request is canceled or its front end disconnects."""
    pair.decoders.goes_on.clear()
    async with pair.engine():
        async with pair.front_end_decoders() as remote:
            tasks = [asyncio.create_task(remote.run(encoded(k), b"client", 5)) for k in (1, 2)]
            await until(lambda: len(pair.decoders.asked) == 2)
            tasks[0].cancel()
            await until(lambda: pair.decoders.canceled == 1)
        await until(lambda: pair.decoders.canceled == 2)
        assert isinstance((await outcomes(tasks))[1], NotReady)


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
