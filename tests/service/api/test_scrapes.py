"""The text of /metrics, rendered at a bounded rate."""

from __future__ import annotations

import asyncio

import pytest

from service.api.scrapes import AT_ONCE, PER_SECOND, Scrapes
from tests.fakes import Clock


class Texts:
    """Numbers the texts, and notes how many are rendered at the same time."""

    def __init__(self) -> None:
        self.count = self.concurrent = self.most = 0
        self.error: Exception | None = None

    async def render(self) -> bytes:
        self.concurrent += 1
        self.most = max(self.most, self.concurrent)
        await asyncio.sleep(0)
        self.concurrent -= 1
        if self.error is not None:
            raise self.error
        self.count += 1
        return b"%d" % self.count


async def test_scrapes_render_a_bounded_number_of_texts() -> None:
    """AT_ONCE scrapes get a new text each, further ones the latest until another is allowed."""
    texts, clock = Texts(), Clock()
    scrapes = Scrapes(texts.render, clock)
    given = await asyncio.gather(*(scrapes.text() for _ in range(1000)))
    assert given == [b"%d" % min(number, AT_ONCE) for number in range(1, 1001)]
    assert texts.most == 1, "one at a time"
    for second in range(1, 11):
        clock.now = second + 0.01
        for _ in range(1000):
            await scrapes.text()
        assert texts.count == AT_ONCE + second * PER_SECOND


async def test_scrapes_after_a_failed_one() -> None:
    """An error is that of one scrape; the next one renders."""
    texts = Texts()
    scrapes = Scrapes(texts.render, Clock())
    texts.error = OSError("too many open files")
    with pytest.raises(OSError, match="too many open files"):
        await scrapes.text()
    texts.error = None
    assert await scrapes.text() == b"1"
