"""The memory for uploads: what they may hold, and who must go when they hold too much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from batching import QueueFull
from service.errors import UploadTimeout
from service.upload.body import read_bytes
from service.upload.memory import CHECK_INTERVAL, GRACE, MIN_RATE, Lease, UploadMemory
from tests.batching.virtual_time import virtual_time

STEADY = 2 * MIN_RATE


@pytest.fixture
def uploads() -> Iterator[ExitStack]:
    with ExitStack() as uploads:
        yield uploads


class Arriving(Lease):
    """Remembers why it was ended."""

    fault: Exception | None = None

    def told(self, fault: Exception) -> None:
        self.fault = fault


def begin(uploads: ExitStack, budget: UploadMemory, held: int = 0) -> Arriving:
    share = Arriving(budget)
    uploads.enter_context(share)
    share.begins(share.told)
    uploads.callback(share.ends)
    share.add(held)
    return share


def ended(*shares: Arriving) -> list[Arriving]:
    """Those that had to make room."""
    return [share for share in shares if isinstance(share.fault, QueueFull)]


def test_no_more_than_the_budget() -> None:
    """By all together; what has ended weighs no more."""
    budget = UploadMemory(10)
    with budget.holding() as one, budget.holding() as two:
        one.add(6)
        two.add(4)
        with pytest.raises(QueueFull):
            two.add(1)
        assert budget.held == 10
    with budget.holding() as three:
        three.add(10)
    assert budget.held == 0


@pytest.mark.parametrize(
    ("arrived", "ended_at"),
    [
        ([1] * 20, GRACE),
        ([0] * 20, GRACE),
        ([3000, 3000, 3000, 3000], None),
        ([0, 0, 6000, 3000, 3000], None),
        ([0, 0, 3000, 3000], 3),
        ([10_000_000] + [0] * 20, 14),
        ([100_000, 100_000, 0, 0, 0, 100_000], None),
    ],
)
def test_too_slow(uploads: ExitStack, arrived: Sequence[int], ended_at: int | None) -> None:
    """Who falls below the least rate is ended: at once after the grace, later if it had been
    faster, and not for a pause."""
    share = begin(uploads, UploadMemory(1 << 30))
    for look, count in enumerate(arrived, 1):
        share.add(count)
        share.look()
        if share.fault is not None:
            assert isinstance(share.fault, UploadTimeout)
            assert look == ended_at
            return
    assert ended_at is None


def test_slow_ones_share_half(uploads: ExitStack) -> None:
    """The slowest makes room, be it the one that has just become slow or one from before; the
    other half stays for those that are not slow."""
    budget = UploadMemory(100_000)
    one, two = begin(uploads, budget, 20_000), begin(uploads, budget, 25_000)
    one.look()
    two.look()
    assert ended(one, two) == []
    newcomer = begin(uploads, budget, 10_000)
    newcomer.look()
    assert ended(one, two, newcomer) == [newcomer]
    faster = begin(uploads, budget, 22_000)
    faster.look()
    assert ended(one, two, faster) == [one]
    two.add(4_000)
    assert ended(two, faster) == [faster]


def test_who_began_fast_and_stalls_goes_first(uploads: ExitStack) -> None:
    """A fast start is soon forgotten."""
    budget = UploadMemory(100_000_000)
    stalled = begin(uploads, budget, 30_000_000)
    stalled.look()
    steady = begin(uploads, budget)
    for _ in range(11):
        steady.add(2_000_000)
        steady.look()
        stalled.add(10_000)
        stalled.look()
    assert ended(stalled, steady) == [stalled]


def test_who_has_arrived_is_slow_no_more(uploads: ExitStack) -> None:
    """While it is decoded, an upload weighs on the budget and not on the slow ones' half."""
    budget = UploadMemory(100)
    with ExitStack() as arriving:
        done = begin(arriving, budget, 50)
        done.look()
        done.ends()
        other = begin(uploads, budget, 45)  # slower, and so the first to go if it had to
        other.look()
        assert done.fault is other.fault is None


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["add", "look", "end"]), st.integers(0, 400)),
        max_size=60,
    )
)
def test_whatever_happens(steps: list[tuple[int, str, int]]) -> None:
    """The sums are those of the uploads, and the slow ones keep to their half."""
    budget = UploadMemory(1000)
    with ExitStack() as stack:
        stacks = [stack.enter_context(ExitStack()) for _ in range(5)]
        shares = [begin(own, budget) for own in stacks]
        slow: set[int] = set()
        for which, what, count in steps:
            if what == "end":
                stacks[which].close()
                shares[which] = begin(stacks[which], budget)
                slow.discard(which)
            elif what == "look" and shares[which].fault is None:
                shares[which].look()
                slow.add(which)
            elif what == "add":
                before = budget.held
                try:
                    shares[which].add(count)
                except QueueFull:
                    assert before + count > 1000 and budget.held == before
            assert budget.held == sum(share.held for share in shares) <= 1000
            still = [shares[n].held for n in slow if shares[n].fault is None]
            assert sum(still) <= 500
    assert budget.held == 0


def request(chunks: AsyncIterator[bytes]) -> Request:
    """With a body that arrives as `chunks` do."""

    async def receive() -> Any:
        try:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.request"}

    return Request({"type": "http", "headers": []}, receive)


async def every(seconds: float, chunk: bytes, times: int = 10**6) -> AsyncIterator[bytes]:
    for _ in range(times):
        await asyncio.sleep(seconds)
        yield chunk


@virtual_time
async def test_a_byte_a_second() -> None:
    """It is told so after the grace, long before the upload's time is up."""
    budget, loop = UploadMemory(1000), asyncio.get_running_loop()
    with budget.holding() as share, pytest.raises(UploadTimeout, match="too slowly: 5 bytes"):
        await read_bytes(request(every(1, b"x")), 1000, 30, share)
    assert loop.time() == GRACE * CHECK_INTERVAL
    assert budget.held == 0


@pytest.mark.parametrize("fails", ["look", "end"])
@virtual_time
async def test_a_look_that_fails_ends_the_upload(fails: str) -> None:
    """At once: the timer that would end it otherwise is not set again."""

    class Faulty(Lease):
        def look(self) -> None:
            if fails == "look":
                raise LookupError

        def end(self, fault: Exception) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        await read_bytes(
            request(every(1, bytes(STEADY))), 1 << 20, 30, Faulty(UploadMemory(1 << 20))
        )
    assert asyncio.get_running_loop().time() == (CHECK_INTERVAL if fails == "look" else 30)


@virtual_time
async def test_slow_enough_to_be_in_time() -> None:
    """Nobody who is well above the least rate is cut before the upload's time is up."""
    budget = UploadMemory(1 << 20)
    with budget.holding() as share:
        found = await read_bytes(request(every(1, bytes(STEADY), 29)), 1 << 20, 30, share)
    assert len(found) == 29 * STEADY
    with budget.holding() as share, pytest.raises(UploadTimeout, match="within 30 seconds"):
        await read_bytes(request(every(1, bytes(STEADY))), 1 << 20, 30, share)


@virtual_time
async def test_slow_ones_do_not_keep_others_out() -> None:
    """While slow uploads fill what they may, as many fast ones as before are read."""
    budget = UploadMemory(100_000)

    async def upload(chunks: AsyncIterator[bytes]) -> int:
        with budget.holding() as share:
            return len(await read_bytes(request(chunks), 20_000, 30, share))

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(10_000)
        await asyncio.sleep(25)
        yield b""

    slow = [asyncio.create_task(upload(stalls())) for _ in range(10)]
    await asyncio.sleep(CHECK_INTERVAL + 0.1)
    for _ in range(100):
        assert await upload(every(0.01, bytes(10_000), 2)) == 20_000
    outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert sum(isinstance(outcome, QueueFull) for outcome in outcomes) == 5
    assert budget.held == 0
