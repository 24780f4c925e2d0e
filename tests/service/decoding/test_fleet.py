"""The fleet keeps the decoders of all lanes running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest

from service.decoding import fleet
from service.decoding.fleet import Fleet
from service.decoding.lane import Decoder, Lane
from service.decoding.launch import Template
from tests.service.decoding.fakes import FakeTemplate
from tests.waiting import until


class Work:
    """Lets decoders wait until the test ends their images."""

    def __init__(self) -> None:
        self.served: list[Decoder] = []
        self.next: asyncio.Queue[bool] = asyncio.Queue()

    async def __call__(self, decoder: Decoder) -> bool:
        self.served.append(decoder)
        return await self.next.get()


@asynccontextmanager
async def running(
    lanes: tuple[Lane, ...], work: Work, template: Callable[[], FakeTemplate]
) -> AsyncIterator[Fleet]:
    decoders = Fleet(lanes, work, lambda: cast(Template, template()))
    task = asyncio.create_task(decoders.run())
    yield decoders
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def lanes() -> tuple[Lane, Lane]:
    return Lane(2, memory=10, max_seconds=1.0), Lane(1, memory=20, max_seconds=1.0, nicer=5)


async def test_fleet_starts_the_decoders_of_each_lane() -> None:
    """Each has the memory of its lane, and gets the images of its lane."""
    both, work, fake = lanes(), Work(), FakeTemplate()
    async with running(both, work, lambda: fake):
        await until(lambda: len(work.served) == 3)
        assert sorted(process.memory for process in fake.forked) == [10, 10, 20]
        for decoder in work.served:
            assert decoder.process in decoder.lane.processes
    assert not any(lane.processes for lane in both)


async def test_fleet_replaces_a_decoder_that_is_used_up() -> None:
    """A decoder is asked for the next image while it can decode it, and replaced afterwards."""
    (lane, _), work, fake = lanes(), Work(), FakeTemplate()
    async with running((lane,), work, lambda: fake):
        await until(lambda: len(work.served) == 2)
        work.next.put_nowait(True)
        await until(lambda: len(work.served) == 3)
        assert len(fake.forked) == 2
        work.next.put_nowait(False)
        await until(lambda: len(work.served) == 4)
        assert len(fake.forked) == 3 and len(lane.processes) == 2


async def test_fleet_tries_again_when_no_decoder_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure is logged, and the other decoders go on."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    (lane, _), work, fake = lanes(), Work(), FakeTemplate()
    fake.failures = 1
    with caplog.at_level(logging.ERROR):
        async with running((lane,), work, lambda: fake):
            await until(lambda: len(work.served) == 2)
    assert "trying again in 0.01 s" in caplog.text


async def test_fleet_starts_another_template_when_one_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All decoders of the ended template are given up, and new ones are forked from the new one."""
    monkeypatch.setattr(fleet, "RETRY_SECONDS", 0.01)
    (lane, _), work = lanes(), Work()
    first, second = FakeTemplate(), FakeTemplate()
    templates = iter((first, second))
    with caplog.at_level(logging.ERROR):
        async with running((lane,), work, lambda: next(templates)):
            await until(lambda: len(work.served) == 2)
            first.ended.set()
            await until(lambda: len(second.forked) == 2 and len(lane.processes) == 2)
            assert all(process.closed for process in first.forked)
    assert "starting the template and all decoders again" in caplog.text


async def test_fleet_logs_restrictions_once(caplog: pytest.LogCaptureFixture) -> None:
    """Decoders with the same restrictions give one line."""
    (lane, _), work, fake = lanes(), Work(), FakeTemplate()
    with caplog.at_level(logging.INFO):
        async with running((lane,), work, lambda: fake):
            await until(lambda: len(work.served) == 2)
    assert [record.message for record in caplog.records].count("decoder started") == 1
