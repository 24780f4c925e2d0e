"""Tests when a connection is busy, and how its streams end."""

from __future__ import annotations

import asyncio

import pytest

from service.grpc.connection_streams import OPEN_STREAMS, ConnectionStreams
from service.grpc.start_limit import CLOSED_SECONDS
from service.grpc.streams import UNREAD, UNREAD_SECONDS, Streams
from service.grpc.timers import Timers
from service.upload.body import UploadMemory
from tests.batching.virtual_time import virtual_time


class Connection:
    """Records what its streams do to it."""

    def __init__(self, all_streams: Streams | None = None, client: str = "::1") -> None:
        self.busy: list[bool] = []
        self.reasons: list[str] = []
        if all_streams is None:
            all_streams = Streams(UploadMemory(2**20), 1000)
        self.all_streams = all_streams
        self.timers = Timers()
        self.streams = ConnectionStreams(self, client, self.all_streams, self.timers)

    def abort(self) -> None: ...

    def disconnect(self, reason: str) -> None:
        self.reasons.append(reason)

    def set_busy(self, busy: bool) -> None:
        self.busy.append(busy)


async def test_connection_is_busy_while_a_message_is_handled() -> None:
    """It is busy from the first message that a handler has to the end of the last handler."""
    connection = Connection()
    first, second = connection.streams.open(1), connection.streams.open(3)
    assert connection.busy == []
    first.take()
    second.take()
    assert connection.busy == [True, True]
    connection.all_streams.answer(first)
    assert connection.busy == [True, True]
    connection.streams.close(3)
    assert connection.busy == [True, True, False]


async def test_stream_without_a_handler_has_a_timer() -> None:
    """The timer runs before the handler begins and after it has ended, until the stream closes."""
    connection = Connection()
    stream = connection.streams.open(1)
    assert 1 in connection.timers
    connection.all_streams.claim(stream.name)
    assert 1 not in connection.timers
    connection.all_streams.answer(stream)
    assert 1 in connection.timers
    connection.streams.close(1)
    assert 1 not in connection.timers


@virtual_time
async def test_unread_response_is_marked_after_a_second() -> None:
    """At the limit of unread responses, a client loses its connection for old ones, even if
    another client has more new ones."""
    slow = Connection()
    quick = Connection(slow.all_streams, "10.0.0.1")
    answer(slow, UNREAD // 4)
    await asyncio.sleep(2 * UNREAD_SECONDS)
    answer(quick, UNREAD - UNREAD // 4)
    assert not slow.reasons
    answer(quick, 1)
    assert slow.reasons and not quick.reasons


def answer(connection: Connection, count: int) -> None:
    """Open streams whose handlers begin and end. The client does not receive the responses."""
    begin = connection.streams.last + 2 | 1
    for number in range(begin, begin + 2 * count, 2):
        stream = connection.streams.open(number)
        connection.all_streams.claim(stream.name)
        connection.all_streams.answer(stream)


@virtual_time
async def test_closed_calls_count_until_they_begin_or_for_a_second() -> None:
    """A client does not get further calls started by closing those that wait for a handler."""
    connection = Connection()
    number = 1
    while connection.streams.may_open:
        connection.streams.open(number)
        number += 2
    connection.streams.close_all()
    assert not connection.streams.may_open
    await asyncio.sleep(2 * CLOSED_SECONDS)
    assert connection.streams.may_open


async def test_closed_stream_makes_the_connection_busy_no_more() -> None:
    """A handler that gets its message or ends after the stream was closed changes nothing."""
    connection = Connection()
    stream = connection.streams.open(1)
    connection.all_streams.claim(stream.name)
    connection.streams.close(1)
    stream.take()
    connection.all_streams.answer(stream)
    assert connection.busy == [] and 1 not in connection.timers


async def test_open_streams_of_a_connection_are_limited() -> None:
    """A connection with `OPEN_STREAMS` streams is full until one of them closes."""
    connection = Connection()
    for number in range(1, 2 * OPEN_STREAMS, 2):
        assert not connection.streams.is_full
        connection.streams.open(number)
    assert connection.streams.is_full and connection.streams.last == 2 * OPEN_STREAMS - 1
    connection.streams.close(1)
    assert not connection.streams.is_full


@pytest.mark.parametrize("close", ["all", "expel"])
async def test_all_streams_close_together(close: str) -> None:
    """A connection that closes or is expelled closes all its streams and their timers."""
    connection = Connection()
    stream = connection.streams.open(1)
    connection.streams.open(3)
    if close == "all":
        connection.streams.close_all()
    else:
        stream.expel()
        assert "too many calls" in connection.reasons[0]
    assert not len(connection.all_streams)
    assert 1 not in connection.timers and 3 not in connection.timers
