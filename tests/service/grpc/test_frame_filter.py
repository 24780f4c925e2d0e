"""Tests the checks and the accounting of a client's frames, without sockets."""

from __future__ import annotations

import pytest

from service.grpc.connection_streams import ConnectionStreams
from service.grpc.frame_credit import RESET_COST, USEFUL_BYTES
from service.grpc.frame_filter import STREAM_HEADER, BadFrame, FrameFilter
from service.grpc.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    SETTINGS,
    field,
    frame,
)
from service.grpc.streams import Streams
from service.grpc.timers import Timers
from service.grpc.turn_limit import CALLS, TurnLimit
from service.upload.body import UploadMemory

CALL = frame(HEADERS, END_HEADERS, 1, b"call")
PING = frame(0x6, 0, 0, bytes(8))


class Connection:
    """A connection that nothing happens to."""

    def abort(self) -> None: ...
    def disconnect(self, reason: str) -> None: ...
    def set_busy(self, busy: bool) -> None: ...


class Client:
    """A client's frames, and the filter that checks them."""

    def __init__(self, credit: float = 1000.0) -> None:
        connection, self.timers = Connection(), Timers()
        self.turn = TurnLimit()
        self.all_streams = Streams(UploadMemory(2**20), 1000)
        self.streams = ConnectionStreams(connection, "::1", self.all_streams, self.timers)
        self.filter = FrameFilter(self.streams, self.timers, self.turn, connection.abort)
        self.filter.credit = credit
        self.data = bytearray()

    def send(self, data: bytes) -> bytes:
        """The bytes that are relayed for `data` and for what was not relayed before."""
        self.data += data
        return b"".join(self.filter.take(self.data))


async def test_filter_relays_complete_frames() -> None:
    """A frame is relayed when its last byte has arrived."""
    client = Client()
    assert client.send(PING + PING[:12]) == PING
    assert client.send(PING[12:]) == PING and not client.data


async def test_filter_adds_the_name_of_the_stream() -> None:
    """A frame with the name follows the header block of a call, whether it has one part or two."""
    client = Client()
    relayed = client.send(CALL)
    name = field(STREAM_HEADER, next(iter(client.all_streams)).name)
    assert relayed == frame(HEADERS, 0, 1, b"call") + frame(CONTINUATION, END_HEADERS, 1, name)
    parts = frame(HEADERS, 0, 3, b"ca"), frame(CONTINUATION, END_HEADERS, 3, b"ll")
    assert client.send(parts[0]) == parts[0] and "headers" in client.timers
    relayed = client.send(parts[1])
    assert relayed.startswith(frame(CONTINUATION, 0, 3, b"ll")) and "headers" not in client.timers
    assert STREAM_HEADER.encode() in relayed


async def test_filter_does_not_name_trailers() -> None:
    """Headers of a stream that is already open are relayed unchanged."""
    client = Client()
    client.send(CALL)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"trailers")
    assert client.send(trailers) == trailers


@pytest.mark.parametrize(
    ("sent", "cost"),
    [
        (PING, 1),
        (frame(SETTINGS, 0, 0), 1),
        (frame(RST_STREAM, 0, 1, bytes(4)), RESET_COST),
        (frame(HEADERS, END_HEADERS, 3), 1),
        (frame(DATA, 0, 1), 1),
        (frame(DATA, 0, 1, bytes(USEFUL_BYTES - 1)), 1),
        (frame(DATA, 0, 1, bytes(USEFUL_BYTES)), 0),
        (frame(DATA, END_STREAM, 1), 1),
        (frame(DATA, END_STREAM, 1, b"x"), 0),
        (frame(DATA, END_STREAM, 1, b"x") + frame(DATA, 0, 1, bytes(1000)), 1),
        (frame(DATA, END_STREAM, 1, b"x") + frame(DATA, END_STREAM, 1, bytes(1000)), 1),
        (frame(RST_STREAM, 0, 1, bytes(4)) + frame(DATA, 0, 1, bytes(1000)), RESET_COST + 1),
    ],
)
async def test_filter_counts_frames_without_a_message(sent: bytes, cost: float) -> None:
    """Frames without a message use up credit, and DATA with a message does not."""
    client = Client()
    client.send(CALL)
    before = client.filter.credit
    client.send(sent)
    assert before - client.filter.credit == cost


async def test_filter_relays_nothing_without_credit() -> None:
    """Frames beyond the credit stay until there is credit again."""
    client = Client(credit=2)
    assert client.send(5 * PING) == 2 * PING and client.data == 3 * PING
    assert client.send(b"") == b""
    client.filter.credit = 3
    assert client.send(b"") == 3 * PING


async def test_filter_waits_for_a_turn() -> None:
    """Calls beyond the limit of the turn stay; other frames before them are relayed."""
    client = Client()
    for _ in range(CALLS):
        client.turn.count_call()
    assert client.send(PING + CALL + PING) == PING
    assert client.filter.waits_for_turn and client.data == CALL + PING


async def test_filter_counts_messages() -> None:
    """DATA counts toward the upload memory, and the end of the stream completes the message."""
    client = Client()
    client.send(CALL + frame(DATA, 0, 1, bytes(1000)))
    stream = client.streams.get(1)
    assert stream is not None and stream.received == stream.lease.held == 1000


async def test_filter_rejects_a_frame_before_it_is_complete() -> None:
    """The length alone of a frame that is too large is enough."""
    with pytest.raises(BadFrame, match="larger than 16384 bytes"):
        Client().send(frame(DATA, 0, 1, bytes(16_385))[:9])
