"""Relays that wait for credit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.grpc import frame_credit
from service.grpc.frame_credit import FRAMES_AT_ONCE, FRAMES_PER_SECOND, FrameCredit, FrameLimiter

CLIENT = "192.0.2.1"


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_credit, "RETRY_SECONDS", 0.01)


class Frozen(FrameLimiter):
    """A limiter whose credit does not grow with time."""

    def __init__(self, frames: float) -> None:
        super().__init__()
        self.frames = frames
        self.asked = 0
        self.credit.left = self._left  # type: ignore[method-assign]

    def _left(self, client: object, now: float) -> float:
        self.asked += 1
        return self.frames


async def test_limiter_wakes_as_many_relays_as_there_are_frames() -> None:
    """The longest waiting first. The others are not asked until there is credit again."""
    limiter, woken = Frozen(3), list[int]()
    credit = FrameCredit(limiter, CLIENT)

    def relay(number: int) -> Callable[[], None]:
        def resume() -> None:
            woken.append(number)
            limiter.frames -= 1
            if number == 2:
                done.set()

        return resume

    done = asyncio.Event()
    for number in range(1000):
        credit.wait(relay(number))
    async with asyncio.timeout(10):
        await done.wait()
    assert woken == [0, 1, 2] and limiter.asked <= 10


async def test_limiter_wakes_relays_of_one_client_only() -> None:
    """A client without credit does not delay the relays of another."""
    limiter, woken = FrameLimiter(), asyncio.Event()
    loop = asyncio.get_running_loop()
    flooding, other = FrameCredit(limiter, CLIENT), FrameCredit(limiter, "192.0.2.2")
    flooding.spend(FRAMES_AT_ONCE + 100 * FRAMES_PER_SECOND, loop.time())
    for _ in range(1000):
        flooding.wait(lambda: pytest.fail("it has no credit"))
    other.wait(woken.set)
    async with asyncio.timeout(10):
        await woken.wait()


async def test_relay_that_has_ended_is_not_woken() -> None:
    """And the queue of its client is forgotten when it is empty."""
    limiter, woken = FrameLimiter(), asyncio.Event()
    credit = FrameCredit(limiter, CLIENT)

    def ended() -> None:
        pytest.fail("it has ended")

    credit.wait(ended)
    credit.wait(woken.set)
    credit.stop_waiting(ended)
    credit.stop_waiting(ended)
    async with asyncio.timeout(10):
        await woken.wait()
    assert not limiter._waiting
