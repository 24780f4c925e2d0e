"""Tests the relay with real sockets and a fake gRPC server."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import random
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from service.grpc import connection_streams, frame_credit, frame_filter, relay, start_limit
from service.grpc.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    FrameHeads,
    field,
    frame,
)
from service.grpc.listener import RelayListener
from service.grpc.streams import Stream, Streams
from service.server.connection_limit import Connections
from service.upload.body import UploadMemory

pytestmark = pytest.mark.slow
PATIENCE = 20.0
PING = 0x6
START = PREFACE + frame(SETTINGS, 0, 0)
HEADER = field("name", "value")
CALL = frame(HEADERS, END_HEADERS, 1, HEADER)
ANSWER = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"answer")
MAX_CONNECTIONS = 2
MANY = 1_000_000


class Wire:
    """A listener for at most two connections, and the connections to its fake gRPC server."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.connections = Connections(MAX_CONNECTIONS)
        self.memory = UploadMemory(2**20)
        self.streams = Streams(self.memory, 8)
        self.path = str(folder / "grpc")
        self.relays = RelayListener(self.connections, self.streams, self.path)
        self.servers = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
        self.writers: list[asyncio.StreamWriter] = []
        self.listener = socket.create_server(("127.0.0.1", 0))

    async def connect(
        self, sent: bytes = START, address: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(
            *self.listener.getsockname(), local_addr=(address, 0)
        )
        writer.write(sent)
        self.writers.append(writer)
        return reader, writer

    async def stream(self) -> Stream:
        """Wait for the only stream."""
        await until(lambda: len(self.streams) > 0)
        (stream,) = self.streams
        return stream


@pytest.fixture
async def wire(tmp_path: pathlib.Path) -> AsyncIterator[Wire]:
    async with wired(tmp_path) as wire:
        yield wire


@asynccontextmanager
async def wired(folder: pathlib.Path) -> AsyncIterator[Wire]:
    wire = Wire(folder)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.writers.append(writer)
        await wire.servers.put((reader, writer))

    server = await asyncio.start_unix_server(serve, wire.path)
    await wire.relays.start([wire.listener])
    try:
        yield wire
    finally:
        wire.relays.stop_accepting()
        wire.relays.stop()
        server.close()
        for _ in range(10):  # turns of the event loop until accepted connections reach `serve`
            await asyncio.sleep(0)
        for writer in wire.writers:
            writer.transport.abort()
        await until(lambda: not wire.connections.connections)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110  # no event tells of a protocol's state
            await asyncio.sleep(0.001)


async def reason(reader: asyncio.StreamReader) -> str:
    """The text of the GOAWAY that ends the connection."""
    async with asyncio.timeout(PATIENCE):
        data = await reader.read()
    *_, (kind, _, _) = FrameHeads().feed(data)
    assert kind == GOAWAY
    return data.rpartition(b"\0\0\0\x0b")[2].decode()


async def arrived(wire: Wire, frames: bytes) -> None:
    """Wait until the upload memory holds the frames, and the name of each call in them."""
    calls = sum(kind == HEADERS for kind, _, _ in FrameHeads().feed(frames))
    size = len(frames) + calls * len(field("shoal-stream", 32 * "0"))
    await until(lambda: wire.memory.held == size)


async def test_relay_adds_one_header_and_changes_nothing_else(wire: Wire) -> None:
    """The frames arrive unchanged, except for one more header."""
    sent = START + CALL + frame(DATA, END_STREAM, 1, b"message")
    _, writer = await wire.connect(b"")
    at = 0
    while at < len(sent):
        size = random.Random(at).randrange(1, 9)
        writer.write(sent[at : at + size])
        await asyncio.sleep(0)
        at += size
    server, _ = await wire.servers.get()
    name = field("shoal-stream", (await wire.stream()).name)
    named = frame(HEADERS, END_HEADERS, 1, HEADER + name)
    expected = START + named + frame(DATA, END_STREAM, 1, b"message")
    assert await server.readexactly(len(expected)) == expected
    assert (await wire.stream()).client == "127.0.0.1"


async def test_relay_counts_bytes_until_the_call_ends(wire: Wire) -> None:
    """A response, a reset by either side, and the end of the connection release the bytes."""
    reset = frame(RST_STREAM, 0, 1, bytes(4))
    for ends in "answer", "client", "server", "connection":
        sent = frame(SETTINGS, 0, 0) + CALL + frame(DATA, 0, 1, bytes(1000))
        _, writer = await wire.connect(PREFACE + sent)
        _, server = await wire.servers.get()
        await arrived(wire, sent)
        if ends == "client":
            writer.write(reset)
        elif ends == "connection":
            writer.close()
        else:
            server.write(ANSWER if ends == "answer" else reset)
        await arrived(wire, b"")
        assert not len(wire.streams)
        writer.close()


async def test_bytes_that_an_incomplete_message_keeps_are_held(wire: Wire) -> None:
    """gRPC's server keeps the bytes of an answered call in the buffer that it filled for both."""
    other = frame(HEADERS, END_HEADERS, 3, HEADER) + frame(DATA, END_STREAM, 3, bytes(10_000))
    sent = frame(SETTINGS, 0, 0) + CALL + frame(DATA, 0, 1, bytes(256)) + other
    await wire.connect(PREFACE + sent)
    _, server = await wire.servers.get()
    await arrived(wire, sent)
    server.write(frame(HEADERS, END_HEADERS | END_STREAM, 3, b"answer"))
    await until(lambda: len(wire.streams) == 1)
    await arrived(wire, sent)
    server.write(ANSWER)
    await arrived(wire, b"")


@pytest.mark.parametrize("sent", [b"", PREFACE[:10]])
async def test_preface_must_be_complete_in_time(
    wire: Wire, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without a complete preface is closed after `HEAD_SECONDS`."""
    monkeypatch.setattr(relay, "HEAD_SECONDS", 0.1)
    reader, _ = await wire.connect(sent)
    assert await ended(reader)


async def test_relay_rejects_another_protocol(wire: Wire) -> None:
    """A connection that begins with anything but the preface is closed."""
    reader, _ = await wire.connect(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    assert wire.servers.empty()


BLOCK = frame(HEADERS, 0, 1, HEADER)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (BLOCK + 3 * frame(CONTINUATION, 0, 1, bytes(3_000)), "longer than 8192 bytes"),
        (BLOCK + frame(PING, 0, 0, bytes(8)), "interrupted"),
        (BLOCK + frame(CONTINUATION, 0, 3), "interrupted"),
        (BLOCK + frame(HEADERS, END_HEADERS, 3), "interrupted"),
        (frame(CONTINUATION, END_HEADERS, 1), "does not follow a HEADERS frame"),
        (CALL + frame(DATA, 0, 1, bytes(16_385))[:9], "larger than 16384 bytes"),
        (
            frame(HEADERS, END_HEADERS, 2, HEADER),
            "stream 2 was opened by a client: the number must be odd",
        ),
        (
            frame(HEADERS, END_HEADERS, 0, HEADER),
            "stream 0 was opened by a client: the number must be odd",
        ),
        (frame(HEADERS, 0, 0, HEADER), "stream 0 was opened by a client: the number must be odd"),
        (CALL + frame(DATA, 0, 3, bytes(1000)), "stream 3, which was never opened"),
        (CALL + frame(DATA, 0, 0, bytes(1000)), "stream 0, which was never opened"),
    ],
)
async def test_relay_rejects_frames_that_are_not_allowed(
    wire: Wire, sent: bytes, expected: str
) -> None:
    """The connection is closed with the reason."""
    reader, _ = await wire.connect(START + sent)
    assert expected in await reason(reader)


async def test_header_block_must_be_complete_in_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty frames in the block do not extend the time."""
    monkeypatch.setattr(frame_filter, "HEAD_SECONDS", 0.2)
    reader, writer = await wire.connect(START + BLOCK)
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        writer.write(frame(CONTINUATION, 0, 1))
        await asyncio.sleep(0.02)
    assert not wire.connections.connections


REPEATED = {
    "pings": frame(PING, 0, 0, bytes(8)),
    "settings": frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0"),
    "resets": frame(RST_STREAM, 0, 1, bytes(4)),
    "window updates": frame(0x8, 0, 0, b"\0\0\0\1"),
    "priorities": frame(0x2, 0, 1, bytes(5)),
    "unknown frames": frame(0x42, 0, 0, b"x"),
    "large unknown frames": frame(0x42, 0, 0, bytes(1000)),
    "empty data": frame(DATA, 0, 1),
    "a byte of data each": frame(DATA, 0, 1, b"x"),
    "data of a closed stream": frame(DATA, 0, 1, bytes(1000)),
    "empty ends of a message": frame(DATA, END_STREAM, 1),
    "data behind the end of a message": frame(DATA, 0, 1, bytes(1000)),
    "trailers": frame(HEADERS, END_HEADERS, 1),
    "empty continuations": frame(CONTINUATION, 0, 3),
}
BEGINS = {
    "data of a closed stream": frame(RST_STREAM, 0, 1, bytes(4)),
    "data behind the end of a message": frame(DATA, END_STREAM, 1, b"x"),
    "empty continuations": frame(HEADERS, 0, 3),
}
FLOODS = {flood: 10_000 * one for flood, one in REPEATED.items()} | {
    "calls that are reset": b"".join(
        frame(HEADERS, END_HEADERS, number) + frame(RST_STREAM, 0, number, bytes(4))
        for number in range(3, 20_003, 2)
    )
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_frames_without_a_message_are_relayed_slowly(
    wire: Wire, flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most the allowed number is relayed, and a lasting flood ends the connection."""
    monkeypatch.setattr(start_limit, "CALLS", MANY)
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.5)
    begin = BEGINS.get(flood, b"")
    reader, _ = await wire.connect(START + CALL + begin + FLOODS[flood])
    server, _ = await wire.servers.get()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(PATIENCE):
        passed = len(list(FrameHeads().feed((await server.read())[len(PREFACE) :])))
    seconds = loop.time() - began
    assert (
        passed <= frame_credit.FRAMES_AT_ONCE + frame_credit.FRAMES_PER_SECOND * (seconds + 1) + 4
    )
    assert await ended(reader)


@pytest.mark.parametrize("flood", ["pings", "calls that are reset"])
async def test_connecting_again_gives_no_further_credit(
    wire: Wire, flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections of a client together may send as many frames as one."""
    monkeypatch.setattr(start_limit, "CALLS", MANY)
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    began, passed = loop.time(), 0
    for _ in range(5):
        reader, writer = await wire.connect(START + FLOODS[flood])
        server, _ = await wire.servers.get()
        async with asyncio.timeout(PATIENCE):
            passed += len(list(FrameHeads().feed((await server.read())[len(PREFACE) :])))
        assert await ended(reader)
        writer.close()
    allowed = frame_credit.FRAMES_AT_ONCE + frame_credit.FRAMES_PER_SECOND * (
        loop.time() - began + 1
    )
    assert passed <= allowed + 5 * frame_credit.RESET_COST


async def answered_calls(
    wire: Wire, limit: int, message: bytes, beside: bytes = b"", *, is_read: bool = True
) -> int:
    """Make up to `limit` calls on one connection, 50 at a time, whose messages are read by their
    handlers or not. Returns the number of responses until the connection has ended."""
    reader, writer = await wire.connect()
    server, answers = await wire.servers.get()
    await server.readexactly(len(PREFACE))

    async def answer() -> None:
        heads = FrameHeads()
        with suppress(ConnectionError):
            while data := await server.read(65_536):
                for kind, _, number in heads.feed(data):
                    if kind == DATA:
                        for stream in wire.streams:
                            if is_read and stream.complete and not stream.taken:
                                stream.take()
                        ends = END_HEADERS | END_STREAM
                        answers.write(frame(HEADERS, ends, number, b"answer"))

    answering, count = asyncio.ensure_future(answer()), 0
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while count < limit:
                for number in range(2 * count + 1, 2 * count + 101, 2):
                    writer.write(frame(HEADERS, END_HEADERS, number))
                    writer.write(frame(DATA, END_STREAM, number, message) + beside)
                await reader.readexactly(50 * len(ANSWER))
                count += 50
    writer.close()
    await answering
    return count


@pytest.mark.parametrize(
    ("size", "is_read"),
    [(0, True), (frame_credit.USEFUL_BYTES - 1, True), (9 * frame_credit.USEFUL_BYTES, False)],
)
async def test_responses_without_a_message_give_no_credit(
    wire: Wire, size: int, is_read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls with an empty or very short message, or one that no handler reads, are relayed slowly,
    although they are answered."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.5)
    began = (loop := asyncio.get_running_loop()).time()
    count = await answered_calls(wire, 4_000, bytes(size), is_read=is_read)
    seconds = loop.time() - began
    assert count <= frame_credit.FRAMES_AT_ONCE + frame_credit.FRAMES_PER_SECOND * (seconds + 1)


@pytest.mark.parametrize(
    ("size", "pings"), [(frame_credit.USEFUL_BYTES, 0), (9 * frame_credit.USEFUL_BYTES, 6)]
)
async def test_responses_to_messages_give_credit(
    wire: Wire, size: int, pings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls with a message, and the frames that clients send beside them, are relayed at any
    rate."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.1)
    count = 2 * frame_credit.FRAMES_AT_ONCE
    beside = pings * frame(PING, 0, 0, bytes(8))
    assert await answered_calls(wire, count, bytes(size), beside) == count


async def test_calls_that_have_not_begun_are_limited(wire: Wire) -> None:
    """The limit is for all connections of a network together. All calls are relayed in the end."""
    limit = -(-start_limit.CALLS // (start_limit.FREE_PER_CALL + 1))
    calls = b"".join(frame(HEADERS, END_HEADERS, number) for number in range(1, 201, 2))
    for _ in range(MAX_CONNECTIONS):
        await wire.connect(START + calls)
    begun = set[str]()
    while len(begun) < MAX_CONNECTIONS * 100:
        waiting = min(limit, MAX_CONNECTIONS * 100 - len(begun))
        await until(lambda waiting=waiting: len(wire.streams) - len(begun) == waiting)  # type: ignore[misc]
        name = next(stream.name for stream in wire.streams if not stream.claimed)
        assert wire.streams.claim(name)
        begun.add(name)


async def test_calls_of_a_closed_connection_stop_waiting(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait in a relay are dropped with their connection, and others are relayed."""
    monkeypatch.setattr(start_limit, "CLOSED_SECONDS", 3600)
    calls = b"".join(frame(HEADERS, END_HEADERS, number) for number in range(1, 201, 2))
    _, writer = await wire.connect(START + calls)
    await until(lambda: not wire.streams.start_limit.allows("127.0.0.1"))
    names = [stream.name for stream in wire.streams]
    (relay,) = map(weakref.ref, wire.connections.connections)
    await wire.connect(START + CALL)
    writer.close()
    await until(lambda: not any(stream.name in names for stream in wire.streams))
    await until(lambda: gc.collect() >= 0 and relay() is None)
    for name in names:
        assert wire.streams.claim(name) is None, "the handler of a closed stream may still begin"
    assert (await wire.stream()).name not in names


async def test_relay_with_waiting_calls_buffers_little(wire: Wire) -> None:
    """While calls wait, the relay stops reading after some data."""
    calls = b"".join(frame(HEADERS, END_HEADERS, number) for number in range(1, 201, 2))
    _, writer = await wire.connect(START + calls)
    await until(lambda: not wire.streams.start_limit.allows("127.0.0.1"))
    writer.write(bytes(2**26))
    for _ in range(2**26 // 2**14):  # enough turns to read all
        await asyncio.sleep(0)
    assert writer.transport.get_write_buffer_size() > 2**25


async def test_calls_that_the_server_rejects_have_begun(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response of gRPC's server without a handler makes room for another call."""
    monkeypatch.setattr(start_limit, "CLOSED_SECONDS", 3600)
    calls = b"".join(frame(HEADERS, END_HEADERS, number) for number in range(1, 401, 2))
    await wire.connect(START + calls)
    server, responses = await wire.servers.get()
    await server.readexactly(len(PREFACE))
    heads, rejected = FrameHeads(), 0
    async with asyncio.timeout(PATIENCE):
        while rejected < 200:
            for kind, _, number in heads.feed(await server.read(65_536)):
                if kind == HEADERS:
                    responses.write(frame(RST_STREAM, 0, number, bytes(4)))
                    rejected += 1


async def test_open_calls_of_a_connection_are_limited(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds also if gRPC's server does not answer the calls."""
    monkeypatch.setattr(start_limit, "CALLS", MANY)
    calls = (frame(HEADERS, END_HEADERS, number) for number in range(1, 601, 2))
    reader, _ = await wire.connect(START + b"".join(calls))
    assert f"more than {connection_streams.OPEN_STREAMS} calls" in await reason(reader)
    await until(lambda: not len(wire.streams))


async def test_call_without_a_handler_ends(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without a handler ends in time, with its connection; a call with a handler goes on."""
    handled, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    assert wire.streams.claim(stream.name) is stream
    monkeypatch.setattr(connection_streams, "READ_SECONDS", 0.1)
    ignored, _ = await wire.connect(START + CALL)
    assert await ended(ignored)
    await until(lambda: list(wire.streams) == [stream])
    assert not handled.at_eof()


async def test_call_that_is_claimed_counts_once(wire: Wire) -> None:
    """However often its name is claimed, its connection can be replaced after the response."""
    reader, _ = await wire.connect(START + CALL)
    _, server = await wire.servers.get()
    stream = await wire.stream()
    assert wire.streams.claim(stream.name) is stream
    assert [wire.streams.claim(stream.name) for _ in range(3)] == [None] * 3
    stream.take()
    wire.streams.answer(stream)
    server.write(ANSWER)
    assert await reader.readexactly(len(ANSWER))
    for _ in range(MAX_CONNECTIONS):
        await wire.connect(START)
    assert "a new connection replaces this connection" in await reason(reader)


async def test_expelled_connection_ends_its_calls(wire: Wire) -> None:
    """All calls of the connection end immediately, and the client gets the reason."""
    reader, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    stream.expel()
    assert not len(wire.streams)
    assert "too many calls" in await reason(reader)


async def ended(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of the connection. Its last bytes are lost if not all was read."""
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            await reader.read()
    return True


async def test_new_connection_replaces_a_waiting_one(wire: Wire) -> None:
    """A connection with an incomplete message waits; one whose message is handled does not."""
    busy, _ = await wire.connect(START + CALL)
    (await wire.stream()).take()
    slow, _ = await wire.connect(START + CALL + frame(DATA, 0, 1, b"x"))
    await until(lambda: wire.memory.held > 0)
    newest, _ = await wire.connect(START)
    assert "a new connection replaces this connection" in await reason(slow)
    await wire.servers.get()
    assert len(wire.connections.connections) == MAX_CONNECTIONS
    assert not busy.at_eof() and not newest.at_eof()


async def test_busy_connections_of_a_crowd_make_room_for_another_client(wire: Wire) -> None:
    """Where one client has all places with complete messages, its newest connection ends, and gets
    the reason."""
    crowd = []
    for count in range(1, MAX_CONNECTIONS + 1):
        crowd.append(await wire.connect(START + CALL))
        await until(lambda count=count: len(wire.streams) == count)  # type: ignore[misc]
    for stream in wire.streams:
        stream.take()
    other, _ = await wire.connect(START, "127.0.0.2")
    assert "a new connection replaces this connection" in await reason(crowd[-1][0])
    assert not crowd[0][0].at_eof() and not other.at_eof()
    assert len(wire.connections.connections) == MAX_CONNECTIONS


async def test_new_connection_is_rejected_if_all_are_busy(wire: Wire) -> None:
    """The new client is asked to try again. After a response, a new connection is accepted."""
    for _ in range(MAX_CONNECTIONS):
        await wire.connect(START + CALL)
        _, server = await wire.servers.get()
    await until(lambda: len(wire.streams) == MAX_CONNECTIONS)
    for stream in wire.streams:
        stream.take()
    refused, _ = await wire.connect(b"")
    assert "Try again" in await reason(refused)
    server.write(ANSWER)
    await until(lambda: len(wire.streams) < MAX_CONNECTIONS)
    await wire.connect(START)
    await wire.servers.get()


async def test_client_that_does_not_read_is_disconnected(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is so if the client does not read, and if its flow control allows no byte."""
    for module in relay, connection_streams:
        monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    _, writer = await wire.connect(START + CALL)
    _, server = await wire.servers.get()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    server.write(1000 * frame(DATA, 0, 1, bytes(16_000)))
    await until(lambda: not wire.connections.connections)
    reader, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    stream.take()
    wire.streams.answer(stream)
    assert await ended(reader)


async def test_end_of_the_server_ends_the_client_connection(wire: Wire) -> None:
    """The client gets everything the server sent, and then the end of the connection."""
    reader, _ = await wire.connect(START)
    _, server = await wire.servers.get()
    server.write(ANSWER)
    server.close()
    assert await reader.read() == ANSWER
