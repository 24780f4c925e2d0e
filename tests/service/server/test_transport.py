"""Tests the transports between uvloop and a connection."""

from __future__ import annotations

import asyncio

import pytest

from service.server.transport import (
    GATHERED_BYTES,
    READ_BYTES,
    READ_SECONDS,
    Deadline,
    Incoming,
    Outgoing,
)
from tests.batching.virtual_time import virtual_time
from tests.service.server.wire import Sent


class Recorder(asyncio.Protocol):
    """A connection that records its data and its events."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.events: list[object] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(exc)

    def eof_received(self) -> bool:
        self.events.append("end")
        return True

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


def receive(incoming: Incoming, data: bytes) -> None:
    """Pass data as uvloop does."""
    incoming.get_buffer(1 << 20)[: len(data)] = data
    incoming.buffer_updated(len(data))


def test_incoming_reads_a_limited_number_of_bytes() -> None:
    """At most `READ_BYTES` are read at once, whatever size uvloop suggests."""
    incoming = Incoming(connection := Recorder())
    assert len(incoming.get_buffer(1 << 20)) == READ_BYTES
    receive(incoming, b"12345")
    assert connection.received == [b"12345"]


def test_incoming_keeps_the_data_of_connections_apart() -> None:
    """All connections share a buffer, and each one keeps its own data."""
    one, other = Recorder(), Recorder()
    receive(Incoming(one), b"11111")
    receive(Incoming(other), b"22")
    assert (one.received, other.received) == ([b"11111"], [b"22"])


def test_incoming_passes_events_on() -> None:
    """The connection gets every event of its transport."""
    incoming, transport, error = Incoming(connection := Recorder()), Sent(), OSError()
    incoming.connection_made(transport)
    incoming.pause_writing()
    incoming.resume_writing()
    assert incoming.eof_received(), "the answer of the connection"
    incoming.connection_lost(error)
    assert connection.events == [transport, "pause", "resume", "end", error]


async def test_outgoing_gathers_a_limited_amount() -> None:
    """Data beyond the limit is written at once, so that flow control notices a slow client."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(bytes(GATHERED_BYTES))
    assert transport.sent == []
    outgoing.write(b"1")
    assert transport.sent == [bytes(GATHERED_BYTES) + b"1"]
    outgoing.write(bytes(GATHERED_BYTES))
    assert len(transport.sent) == 1, "what was written counts no more"


async def test_outgoing_writes_when_the_turn_ends() -> None:
    """All data of one turn of the event loop is sent in one call at its end."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.write(b"b")
    assert transport.sent == []
    await asyncio.sleep(0)
    outgoing.write(b"c")
    await asyncio.sleep(0)
    assert transport.sent == [b"ab", b"c"]


async def test_outgoing_flushes_immediately() -> None:
    """`flush` writes what was gathered, and nothing is written again when the turn ends."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.flush()
    assert transport.sent == [b"a"]
    await asyncio.sleep(0)
    assert transport.sent == [b"a"]


@pytest.mark.parametrize("size", [1, GATHERED_BYTES + 1], ids=["turn ends", "limit"])
async def test_outgoing_reports_a_part_of_an_answer(size: int) -> None:
    """`sent` is called for data that is sent before the answer is complete, and not by `flush`."""
    calls: list[int] = []
    outgoing = Outgoing(transport := Sent(), lambda: calls.append(len(transport.sent)))
    outgoing.write(b"whole")
    outgoing.flush()
    await asyncio.sleep(0)
    assert calls == []
    outgoing.write(bytes(size))
    await asyncio.sleep(0)
    assert calls == [2], "after the data was written"


async def test_outgoing_writes_before_it_closes() -> None:
    """Closing sends what was gathered, and nothing is written afterwards."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.close()
    outgoing.write(b"b")
    await asyncio.sleep(0)
    assert (transport.sent, transport.closed) == ([b"a"], True)


@virtual_time
async def test_outgoing_aborts_a_client_that_does_not_read() -> None:
    """A closed connection whose client does not read the rest is aborted after `READ_SECONDS`.
    Closing it again does not give the client more time."""
    outgoing = Outgoing(transport := Sent())
    outgoing.close()
    await asyncio.sleep(READ_SECONDS - 1)
    outgoing.close()
    assert (transport.closes, transport.aborts) == (1, 0)
    await asyncio.sleep(1.001)
    assert transport.aborts == 1


@virtual_time
async def test_outgoing_does_not_abort_a_connection_that_has_ended() -> None:
    """When the client has read the rest in time, the connection is not aborted."""
    outgoing = Outgoing(transport := Sent())
    outgoing.close()
    outgoing.lost()
    await asyncio.sleep(2 * READ_SECONDS)
    assert transport.aborts == 0


async def test_outgoing_drops_data_after_the_end() -> None:
    """`write_eof` sends what was gathered. Later data is dropped."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.write_eof()
    outgoing.write(b"b")
    await asyncio.sleep(0)
    assert (transport.sent, transport.ended) == ([b"a"], True)


@virtual_time
async def test_deadline_calls_when_the_time_is_over() -> None:
    """A deadline calls its function once, after the seconds of its latest start."""
    loop, missed = asyncio.get_running_loop(), list[float]()
    deadline = Deadline(loop, lambda: missed.append(loop.time()))
    deadline.start(2.0)
    await asyncio.sleep(1.0)
    assert deadline.running
    deadline.start(5.0)
    await asyncio.sleep(10.0)
    assert missed == [6.0]


@virtual_time
async def test_deadline_that_is_stopped_does_not_call() -> None:
    """A deadline that was stopped in time does nothing, and can be stopped again."""
    missed: list[int] = []
    deadline = Deadline(asyncio.get_running_loop(), lambda: missed.append(1))
    deadline.start(2.0)
    for _ in range(2):
        deadline.stop()
        assert not deadline.running
    await asyncio.sleep(10.0)
    assert missed == []
