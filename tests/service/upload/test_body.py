"""Bodies of requests: the memory that they may hold, and which of them are rejected as slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from service.errors import BodyTooLarge, UploadMemoryFull, UploadTimeout
from service.upload.body import (
    CHECK_INTERVAL,
    GRACE,
    MIN_RATE,
    Lease,
    UploadMemory,
    read_bytes,
)
from tests.batching.virtual_time import virtual_time

STEADY = 2 * MIN_RATE


@pytest.fixture
def uploads() -> Iterator[ExitStack]:
    with ExitStack() as uploads:
        yield uploads


class Arriving(Lease):
    """A lease that records why its body was rejected."""

    fault: Exception | None = None

    def record(self, fault: Exception) -> None:
        self.fault = fault


def begin(uploads: ExitStack, memory: UploadMemory, held: int = 0) -> Arriving:
    """A body that is arriving until `uploads` is closed, and holds `held` bytes."""
    lease = Arriving(memory, 10 * memory.max_bytes, 30)
    uploads.enter_context(lease)
    lease.begin(lease.record)
    uploads.callback(lease.end)
    lease.add(held)
    return lease


def rejected(*leases: Arriving) -> list[Arriving]:
    """Those whose memory was needed for others."""
    return [lease for lease in leases if isinstance(lease.fault, UploadMemoryFull)]


def test_memory_limits_all_bodies_together() -> None:
    """All bodies together hold at most `max_bytes`; a body that has ended holds nothing."""
    memory = UploadMemory(10)
    with memory.lease() as one, memory.lease() as two:
        one.add(6)
        two.add(4)
        with pytest.raises(UploadMemoryFull):
            two.add(1)
        assert memory.held == 10
    with memory.lease() as three:
        three.add(10)
    assert memory.held == 0


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
def test_lease_rejects_a_slow_body(
    uploads: ExitStack, arrived: Sequence[int], ended_at: int | None
) -> None:
    """A body below the minimum rate is rejected: right after the grace period, later if it was
    faster before, and not because of a pause."""
    lease = begin(uploads, UploadMemory(1 << 30))
    for check, count in enumerate(arrived, 1):
        lease.add(count)
        lease.check()
        if lease.fault is not None:
            assert isinstance(lease.fault, UploadTimeout)
            assert check == ended_at
            return
    assert ended_at is None


def test_slow_bodies_hold_half_of_the_memory(uploads: ExitStack) -> None:
    """The slowest body is rejected, whether it has just become slow or was slow before."""
    memory = UploadMemory(100_000)
    one, two = begin(uploads, memory, 20_000), begin(uploads, memory, 25_000)
    one.check()
    two.check()
    assert rejected(one, two) == []
    newcomer = begin(uploads, memory, 10_000)
    newcomer.check()
    assert rejected(one, two, newcomer) == [newcomer]
    faster = begin(uploads, memory, 22_000)
    faster.check()
    assert rejected(one, two, faster) == [one]
    two.add(4_000)
    assert rejected(two, faster) == [faster]


def test_a_body_that_stalls_is_rejected_first(uploads: ExitStack) -> None:
    """A fast start does not protect a body that stalls."""
    memory = UploadMemory(100_000_000)
    stalled = begin(uploads, memory, 30_000_000)
    stalled.check()
    steady = begin(uploads, memory)
    for _ in range(11):
        steady.add(2_000_000)
        steady.check()
        stalled.add(10_000)
        stalled.check()
    assert rejected(stalled, steady) == [stalled]


def test_a_complete_body_is_not_slow(uploads: ExitStack) -> None:
    """A body that has arrived counts toward the memory, and not toward the half of slow ones."""
    memory = UploadMemory(100)
    with ExitStack() as arriving:
        done = begin(arriving, memory, 50)
        done.check()
        done.end()
        other = begin(uploads, memory, 45)  # slower, and so the first to go if it had to
        other.check()
        assert done.fault is other.fault is None


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["add", "check", "end"]), st.integers(0, 400)),
        max_size=60,
    )
)
def test_memory_counts_what_bodies_hold(steps: list[tuple[int, str, int]]) -> None:
    """After any steps, the sums are those of the bodies, and slow ones hold at most half."""
    memory = UploadMemory(1000)
    with ExitStack() as stack:
        stacks = [stack.enter_context(ExitStack()) for _ in range(5)]
        leases = [begin(own, memory) for own in stacks]
        slow: set[int] = set()
        for which, what, count in steps:
            if what == "end":
                stacks[which].close()
                leases[which] = begin(stacks[which], memory)
                slow.discard(which)
            elif what == "check" and leases[which].fault is None:
                leases[which].check()
                slow.add(which)
            elif what == "add":
                before = memory.held
                try:
                    leases[which].add(count)
                except UploadMemoryFull:
                    assert before + count > 1000 and memory.held == before
            assert memory.held == sum(lease.held for lease in leases) <= 1000
            still = [leases[n].held for n in slow if leases[n].fault is None]
            assert sum(still) <= 500
    assert memory.held == 0


def request(chunks: AsyncIterator[bytes]) -> Request:
    """A request whose body arrives in these chunks."""

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
async def test_a_byte_per_second_is_too_slow() -> None:
    """The body is rejected after the grace period, long before its time is over."""
    memory, loop = UploadMemory(1000, 1000, 30), asyncio.get_running_loop()
    with memory.lease() as lease, pytest.raises(UploadTimeout, match="too slowly: 5 bytes"):
        await read_bytes(request(every(1, b"x")), lease)
    assert loop.time() == GRACE * CHECK_INTERVAL
    assert memory.held == 0


@pytest.mark.parametrize("fails", ["check", "reject"])
@virtual_time
async def test_a_check_that_fails_ends_the_upload(fails: str) -> None:
    """The request ends immediately, because no later check would end it."""

    class Faulty(Lease):
        def check(self) -> None:
            if fails == "check":
                raise LookupError

        def reject(self, error: Exception) -> None:
            raise LookupError

    with pytest.raises(LookupError):
        await read_bytes(
            request(every(1, bytes(STEADY))), Faulty(UploadMemory(1 << 20), 1 << 20, 30)
        )
    assert asyncio.get_running_loop().time() == (CHECK_INTERVAL if fails == "check" else 30)


@virtual_time
async def test_a_body_above_the_minimum_rate_has_all_its_time() -> None:
    """A body above the minimum rate is rejected only when its time is over."""
    memory = UploadMemory(1 << 20, 1 << 20, 30)
    with memory.lease() as lease:
        found = await read_bytes(request(every(1, bytes(STEADY), 29)), lease)
    assert len(found) == 29 * STEADY
    with memory.lease() as lease, pytest.raises(UploadTimeout, match="within 30 seconds"):
        await read_bytes(request(every(1, bytes(STEADY))), lease)


@virtual_time
async def test_slow_bodies_do_not_block_fast_ones() -> None:
    """While slow bodies hold as much as they may, fast ones are read as before."""
    memory = UploadMemory(100_000, 20_000, 30)

    async def upload(chunks: AsyncIterator[bytes]) -> int:
        with memory.lease() as lease:
            return len(await read_bytes(request(chunks), lease))

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(10_000)
        await asyncio.sleep(25)
        yield b""

    slow = [asyncio.create_task(upload(stalls())) for _ in range(10)]
    await asyncio.sleep(CHECK_INTERVAL + 0.1)
    for _ in range(100):
        assert await upload(every(0.01, bytes(10_000), 2)) == 20_000
    outcomes = await asyncio.gather(*slow, return_exceptions=True)
    assert sum(isinstance(outcome, UploadMemoryFull) for outcome in outcomes) == 5
    assert memory.held == 0


async def test_lease_limits_the_size_of_a_body() -> None:
    """A body that grows beyond the maximum size is rejected, and so is one that announces it."""
    memory = UploadMemory(1000, 10, 30)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"12345"

    with memory.lease() as lease, pytest.raises(BodyTooLarge, match="maximum of 10 bytes"):
        await read_bytes(request(chunks()), lease)
    announced = request(chunks())
    announced.scope["headers"] = [(b"content-length", b"11")]
    with memory.lease() as lease, pytest.raises(BodyTooLarge):
        await read_bytes(announced, lease)
    assert memory.held == 0
