"""Tests how the engine process serves several front ends."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model_store.engine import Image
from model_store.manifest import Identity
from service.errors import (
    NotReady,
    Unloaded,
)
from service.inference.service import Classification
from service.settings import Settings
from service.workers import frames
from service.workers.engine_client import SOCKET
from service.workers.error_codec import Unexpected
from tests.fakes import FakeEngine
from tests.service.workers.pair import Pair, encoded, image, outcomes
from tests.waiting import until


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


async def test_engine_server_batches_across_front_ends(pair: Pair, engine: FakeEngine) -> None:
    """Images of several front ends are classified in one batch."""
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


async def test_canceled_item_leaves_the_queue(pair: Pair, engine: FakeEngine) -> None:
    """A canceled item leaves the queue of the engine process and is not processed."""
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


async def test_engine_server_reloads_once_for_all_front_ends(
    pair: Pair, engine: FakeEngine
) -> None:
    """Front ends that reload at the same time, as after SIGHUP, get the result of one load."""
    async with pair.engine(), pair.front_end() as one, pair.front_end() as two:
        await one.load("fake", "8")
        engine.loaded.clear()
        reloads = [asyncio.create_task(remote.reload()) for remote in (one, two)]
        await until(lambda: sum(len(link._calls) for link in pair.hub.connections) == 2)
        engine.loaded.set()
        assert [model.version for model in await asyncio.gather(*reloads)] == ["7", "7"]
    assert pair.loads == ["loaded", "loaded"]


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
