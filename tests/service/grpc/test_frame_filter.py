"""Tests the checks and the accounting of a client's frames, without sockets."""

from __future__ import annotations

import pytest

from service.grpc.connection_streams import ConnectionStreams
from service.grpc.frame_credit import RESET_COST, USEFUL_BYTES
from service.grpc.frame_filter import CHEAP_HEAD_BYTES, STREAM_HEADER, FrameFilter
from service.grpc.header_block import HEAD_BYTES, MAX_FIELDS
from service.grpc.http2_frames import (
    CONTINUATION,
    CONTROL_SIZES,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    MAX_DEBUG_DATA,
    MAX_PAYLOAD,
    MAX_SETTINGS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    BadFrame,
    field,
    frame,
)
from service.grpc.start_limit import CALLS
from service.grpc.streams import Streams
from service.grpc.timers import Timers
from service.upload.body import UploadMemory

HEADER = field("name", "value")
CALL = frame(HEADERS, END_HEADERS, 1, HEADER)
A_PING = frame(PING, 0, 0, bytes(8))
UNKNOWN = 0xFA


def header_block(size: int) -> bytes:
    """A header block of `size` bytes with one field."""
    length = size - 6 - 127
    return b"\0\1a\x7f" + bytes((length % 128 + 128, length // 128)) + (size - 6) * b"v"


class Connection:
    """A connection that nothing happens to."""

    def abort(self) -> None: ...
    def disconnect(self, reason: str) -> None: ...
    def set_busy(self, busy: bool) -> None: ...


class Client:
    """A client's frames, and the filter that checks them."""

    def __init__(self, credit: float = 1000.0) -> None:
        connection, self.timers = Connection(), Timers()
        self.memory = UploadMemory(2**20)
        self.all_streams = Streams(self.memory, 1000)
        self.streams = ConnectionStreams(connection, "::1", self.all_streams, self.timers)
        self.filter = FrameFilter(self.streams, self.timers, connection.abort)
        self.filter.credit = credit
        self.data = bytearray()

    def send(self, data: bytes) -> bytes:
        """The bytes that are relayed for `data` and for what was not relayed before."""
        self.data += data
        return b"".join(self.filter.take(self.data))


async def test_filter_relays_complete_frames() -> None:
    """A frame is relayed when its last byte has arrived."""
    client = Client()
    assert client.send(A_PING + A_PING[:12]) == A_PING
    assert client.send(A_PING[12:]) == A_PING and not client.data


async def test_filter_adds_the_name_of_the_stream() -> None:
    """The header block of a call is relayed with the name, when the whole block has arrived."""
    client = Client()
    relayed = client.send(CALL)
    name = field(STREAM_HEADER, next(iter(client.all_streams)).name)
    assert relayed == frame(HEADERS, END_HEADERS, 1, HEADER + name)
    assert client.send(frame(HEADERS, END_STREAM, 3, HEADER[:5])) == b""
    assert "headers" in client.timers and client.streams.get(3) is None
    relayed = client.send(frame(CONTINUATION, END_HEADERS, 3, HEADER[5:]))
    name = field(STREAM_HEADER, [stream.name for stream in client.all_streams][-1])
    assert relayed == frame(HEADERS, END_HEADERS | END_STREAM, 3, HEADER + name)
    assert "headers" not in client.timers


async def test_filter_does_not_name_trailers() -> None:
    """Headers of a stream that is already open are relayed unchanged."""
    client = Client()
    client.send(CALL)
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, HEADER)
    assert client.send(trailers) == trailers


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize(
    ("block", "reason"),
    [((MAX_FIELDS + 1) * b"\xbe", f"more than {MAX_FIELDS} fields"), (HEADER[:-1], "within a")],
)
async def test_filter_checks_header_blocks(number: int, block: bytes, reason: str) -> None:
    """The headers of a call and trailers are checked before any part of them is relayed."""
    client = Client()
    client.send(CALL)
    assert client.send(frame(HEADERS, 0, number, block)) == b""
    with pytest.raises(BadFrame, match=reason):
        client.send(frame(CONTINUATION, END_HEADERS, number))
    assert client.streams.get(3) is None


@pytest.mark.parametrize(
    ("sent", "cost"),
    [
        (A_PING, 1),
        (frame(SETTINGS, 0, 0), 1),
        (frame(PRIORITY, 0, 1, bytes(5)), 1),
        (frame(WINDOW_UPDATE, 0, 0, bytes(4)), 1),
        (frame(GOAWAY, 0, 0, bytes(8)), 1),
        (frame(GOAWAY, 0, 0, bytes(8 + MAX_DEBUG_DATA)), 1 + MAX_DEBUG_DATA // USEFUL_BYTES),
        (frame(UNKNOWN, 0, 0), 1),
        (frame(UNKNOWN, 0, 0, bytes(MAX_PAYLOAD)), 1 + MAX_PAYLOAD // USEFUL_BYTES),
        (frame(HEADERS, 0, 3) + frame(CONTINUATION, 0, 3, bytes(USEFUL_BYTES)), 2),
        (frame(RST_STREAM, 0, 1, bytes(4)), RESET_COST),
        (frame(HEADERS, END_HEADERS, 3), 1),
        (frame(HEADERS, END_HEADERS, 3, header_block(CHEAP_HEAD_BYTES)), 1),
        (
            frame(HEADERS, END_HEADERS, 3, header_block(HEAD_BYTES)),
            1 + (HEAD_BYTES - CHEAP_HEAD_BYTES) // USEFUL_BYTES,
        ),
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
    """Frames without a message use up credit by their size, and DATA with a message does not."""
    client = Client()
    client.send(CALL)
    before = client.filter.credit
    client.send(sent)
    assert before - client.filter.credit == cost


async def test_filter_relays_nothing_without_credit() -> None:
    """Frames beyond the credit stay until there is credit again."""
    client = Client(credit=2)
    assert client.send(5 * A_PING) == 2 * A_PING and client.data == 3 * A_PING
    assert client.send(b"") == b""
    client.filter.credit = 3
    assert client.send(b"") == 3 * A_PING


@pytest.mark.parametrize("call", [CALL, frame(CONTINUATION, END_HEADERS, 1, HEADER)])
async def test_filter_waits_for_calls_to_begin(call: bytes) -> None:
    """Calls stay while too many have not begun; other frames before them are relayed."""
    client, other = Client(), A_PING
    if call is not CALL:
        client.send(frame(HEADERS, 0, 1))
        other = b""
    for name in range(CALLS):
        client.all_streams.start_limit.add(str(name), "10.9.9.9")
    assert client.send(other + call + A_PING) == other
    assert client.filter.waits_to_start and client.data == call + A_PING
    client.all_streams.start_limit.remove("0")
    assert client.send(b"").endswith(A_PING) and not client.filter.waits_to_start


async def test_filter_counts_messages() -> None:
    """DATA counts toward the upload memory, and the end of the stream completes the message."""
    client = Client()
    client.send(CALL + frame(DATA, 0, 1, bytes(1000)))
    stream = client.streams.get(1)
    assert stream is not None and stream.received == 1000
    assert 1000 < stream.lease.held == client.memory.held


@pytest.mark.parametrize("kind", [*range(12), UNKNOWN, 0xFF])
async def test_filter_counts_all_bytes_that_are_relayed(kind: int) -> None:
    """An incomplete message keeps the frames of every type that share its buffers, so the upload
    memory holds all bytes that are relayed."""
    client = Client()
    relayed = client.send(CALL + frame(DATA, 0, 1, bytes(256)))
    begin = frame(HEADERS, 0, 3) if kind == CONTINUATION else b""
    number = 3 if kind in (HEADERS, CONTINUATION, RST_STREAM) else 1
    payload = bytes(max(CONTROL_SIZES.get(kind, [500])))
    if kind in (HEADERS, CONTINUATION):
        payload = HEADER
    relayed += client.send(begin + frame(kind, END_HEADERS, number, payload))
    relayed += client.send(frame(DATA, 0, 1, bytes(256)))
    assert client.memory.held == len(relayed)


async def test_filter_discards_frames_of_unknown_types() -> None:
    """They are not relayed, and the frames around them are."""
    client, defined = Client(), {DATA, HEADERS, CONTINUATION, *CONTROL_SIZES}
    unknown = b"".join(frame(kind, 0, 0, bytes(9)) for kind in set(range(256)) - defined)
    assert client.send(A_PING + unknown + A_PING) == 2 * A_PING


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (PRIORITY, (0, 4, 6)),
        (RST_STREAM, (0, 3, 5)),
        (SETTINGS, (1, 5, 6 * MAX_SETTINGS + 1, 6 * MAX_SETTINGS + 6)),
        (PING, (0, 7, 9)),
        (GOAWAY, (0, 7, 8 + MAX_DEBUG_DATA + 1)),
        (WINDOW_UPDATE, (0, 3, 5)),
    ],
)
async def test_filter_rejects_control_frames_of_other_sizes(
    kind: int, sizes: tuple[int, ...]
) -> None:
    """The head alone is enough to reject a control frame whose size is not allowed."""
    for size in (*sizes, MAX_PAYLOAD):
        with pytest.raises(BadFrame, match=f"type {kind} has an invalid length of {size} bytes"):
            Client().send(frame(kind, 0, 0, bytes(size))[:HEAD])


async def test_filter_rejects_a_frame_before_it_is_complete() -> None:
    """The length alone of a frame that is too large is enough."""
    with pytest.raises(BadFrame, match="larger than 16384 bytes"):
        Client().send(frame(DATA, 0, 1, bytes(16_385))[:9])
