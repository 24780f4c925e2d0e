"""Tests when a connection is busy, and how its streams end."""

from __future__ import annotations

import pytest

from service.grpc.connection_streams import OPEN_STREAMS, ConnectionStreams
from service.grpc.streams import Streams
from service.grpc.timers import Timers
from service.upload.body import UploadMemory


class Connection:
    """Records what its streams do to it."""

    def __init__(self) -> None:
        self.busy: list[bool] = []
        self.reasons: list[str] = []
        self.all_streams = Streams(UploadMemory(2**20), 1000)
        self.timers = Timers()
        self.streams = ConnectionStreams(self, "::1", self.all_streams, self.timers)

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
