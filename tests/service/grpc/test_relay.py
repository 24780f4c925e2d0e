"""What a client may do to a gRPC connection: real sockets, and a gRPC server that is played."""

from __future__ import annotations

import asyncio
import pathlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest

from service.grpc import relay, turn
from service.grpc.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Heads,
    field,
    frame,
)
from service.grpc.front import Front
from service.grpc.streams import Stream, Streams
from service.server.connection_limit import Connections
from service.upload.body import UploadMemory

pytestmark = pytest.mark.slow
PATIENCE = 20.0
PING = 0x6
START = PREFACE + frame(SETTINGS, 0, 0)
CALL = frame(HEADERS, END_HEADERS, 1, b"call")
ANSWER = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"answer")
MOST = 2


class Wire:
    """A front with two connections at most, and what its gRPC server receives."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.connections = Connections(MOST)
        self.budget = UploadMemory(2**20)
        self.streams = Streams(self.budget, 8)
        self.path = str(folder / "grpc")
        self.front = Front(self.connections, self.streams, self.path)
        self.cores = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
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
        """The only one, as soon as there is one."""
        await until(lambda: len(self.streams) > 0)
        (stream,) = self.streams
        return stream


@pytest.fixture
async def wire(tmp_path: pathlib.Path) -> AsyncIterator[Wire]:
    async with wired(tmp_path) as found:
        yield found


@asynccontextmanager
async def wired(folder: pathlib.Path) -> AsyncIterator[Wire]:
    wire = Wire(folder)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.writers.append(writer)
        await wire.cores.put((reader, writer))

    core = await asyncio.start_unix_server(serve, wire.path)
    await wire.front.start([wire.listener])
    try:
        yield wire
    finally:
        wire.front.stop_accepting()
        wire.front.stop()
        core.close()
        for _ in range(10):  # turns of the loop in which accepted connections reach `serve`
            await asyncio.sleep(0)
        for writer in wire.writers:
            writer.transport.abort()
        await until(lambda: not wire.connections.connections)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110  # a protocol's state, of which no event tells
            await asyncio.sleep(0.001)


async def reason(reader: asyncio.StreamReader) -> str:
    """The text of the GOAWAY with which the connection ends."""
    async with asyncio.timeout(PATIENCE):
        data = await reader.read()
    *_, (kind, _, _) = Heads().feed(data)
    assert kind == GOAWAY
    return data.rpartition(b"\0\0\0\x0b")[2].decode()


async def arrived(wire: Wire, count: int) -> None:
    await until(lambda: wire.budget.held == count)


async def test_frames_pass_unchanged_but_for_one_header(wire: Wire) -> None:
    """In pieces of any size; the header is a frame behind the client's own headers."""
    sent = START + CALL + frame(DATA, END_STREAM, 1, b"message")
    _, writer = await wire.connect(b"")
    at = 0
    while at < len(sent):
        size = random.Random(at).randrange(1, 9)
        writer.write(sent[at : at + size])
        await asyncio.sleep(0)
        at += size
    core, _ = await wire.cores.get()
    name = field("shoal-stream", (await wire.stream()).name)
    named = frame(CONTINUATION, END_HEADERS, 1, name)
    expected = (
        START + frame(HEADERS, 0, 1, b"call") + named + frame(DATA, END_STREAM, 1, b"message")
    )
    assert await core.readexactly(len(expected)) == expected
    assert (await wire.stream()).client == "127.0.0.1"


async def test_bytes_are_held_until_the_call_ends(wire: Wire) -> None:
    """By the answer, by either side's reset, and by the end of the connection."""
    reset = frame(RST_STREAM, 0, 1, bytes(4))
    for ends in "answer", "client", "core", "connection":
        _, writer = await wire.connect(START + CALL + frame(DATA, 0, 1, bytes(1000)))
        _, core = await wire.cores.get()
        await arrived(wire, 1000)
        if ends == "client":
            writer.write(reset)
        elif ends == "connection":
            writer.close()
        else:
            core.write(ANSWER if ends == "answer" else reset)
        await arrived(wire, 0)
        assert not len(wire.streams)
        writer.close()


@pytest.mark.parametrize("sent", [b"", PREFACE[:10]])
async def test_a_preface_must_be_complete_in_time(
    wire: Wire, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HEAD_SECONDS", 0.1)
    reader, _ = await wire.connect(sent)
    assert await ended(reader)


async def test_another_protocol_is_refused(wire: Wire) -> None:
    reader, _ = await wire.connect(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    assert wire.cores.empty()


BLOCK = frame(HEADERS, 0, 1, b"call")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (BLOCK + 3 * frame(CONTINUATION, 0, 1, bytes(11_000)), "longer than 32768 bytes"),
        (BLOCK + frame(PING, 0, 0, bytes(8)), "interrupted"),
        (BLOCK + frame(CONTINUATION, 0, 3), "interrupted"),
        (BLOCK + frame(HEADERS, END_HEADERS, 3), "interrupted"),
        (frame(CONTINUATION, END_HEADERS, 1), "no beginning"),
        (CALL + frame(DATA, 0, 1, bytes(16_385))[:9], "larger than 16384 bytes"),
        (frame(HEADERS, END_HEADERS, 2, b"call"), "stream 2: its numbers are odd"),
        (frame(HEADERS, END_HEADERS, 0, b"call"), "stream 0: its numbers are odd"),
        (frame(HEADERS, 0, 0, b"call"), "stream 0: its numbers are odd"),
        (CALL + frame(DATA, 0, 3, bytes(1000)), "stream 3, which is not open"),
        (CALL + frame(DATA, 0, 0, bytes(1000)), "stream 0, which is not open"),
    ],
)
async def test_what_no_client_may_send(wire: Wire, sent: bytes, told: str) -> None:
    """The connection ends, and the client is told why."""
    reader, _ = await wire.connect(START + sent)
    assert told in await reason(reader)


async def test_a_header_block_must_be_complete_in_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its frames go on and on without a byte."""
    monkeypatch.setattr(relay, "HEAD_SECONDS", 0.2)
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
    "empty data": frame(DATA, 0, 1),
    "a byte of data each": frame(DATA, 0, 1, b"x"),
    "data of a closed stream": frame(DATA, 0, 1, bytes(1000)),
    "trailers": frame(HEADERS, END_HEADERS, 1),
    "empty continuations": frame(CONTINUATION, 0, 3),
}
BEGINS = {
    "data of a closed stream": frame(RST_STREAM, 0, 1, bytes(4)),
    "empty continuations": frame(HEADERS, 0, 3),
}
FLOODS = {flood: 10_000 * one for flood, one in REPEATED.items()} | {
    "calls that are reset": b"".join(
        frame(HEADERS, END_HEADERS, number) + frame(RST_STREAM, 0, number, bytes(4))
        for number in range(3, 20_003, 2)
    )
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_frames_without_a_message_are_taken_slowly(
    wire: Wire, flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than allowed are passed on, and a flood that goes on ends the connection."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.5)
    begin = BEGINS.get(flood, b"")
    reader, _ = await wire.connect(START + CALL + begin + FLOODS[flood])
    core, _ = await wire.cores.get()
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(PATIENCE):
        passed = len(list(Heads().feed((await core.read())[len(PREFACE) :])))
    seconds = loop.time() - began
    assert passed <= relay.FRAMES_AT_ONCE + relay.FRAMES_PER_SECOND * (seconds + 1) + 4
    assert await ended(reader)


@pytest.mark.parametrize("flood", ["pings", "calls that are reset"])
async def test_connecting_again_allows_no_further_frames(
    wire: Wire, flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connections of a client together may send as many frames as one."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    began, passed = loop.time(), 0
    for _ in range(5):
        reader, writer = await wire.connect(START + FLOODS[flood])
        core, _ = await wire.cores.get()
        async with asyncio.timeout(PATIENCE):
            passed += len(list(Heads().feed((await core.read())[len(PREFACE) :])))
        assert await ended(reader)
        writer.close()
    allowed = relay.FRAMES_AT_ONCE + relay.FRAMES_PER_SECOND * (loop.time() - began + 1)
    assert passed <= allowed + 5 * relay.RESET_COST


async def answered_calls(wire: Wire, most: int, message: bytes, beside: bytes = b"") -> int:
    """Make up to `most` calls on one connection, 50 at a time. Returns the number of answers until
    the connection has ended."""
    reader, writer = await wire.connect()
    core, answers = await wire.cores.get()
    await core.readexactly(len(PREFACE))

    async def answer() -> None:
        heads = Heads()
        with suppress(ConnectionError):
            while data := await core.read(65_536):
                for kind, _, number in heads.feed(data):
                    if kind == HEADERS:
                        ends = END_HEADERS | END_STREAM
                        answers.write(frame(HEADERS, ends, number, b"answer"))

    answering, count = asyncio.ensure_future(answer()), 0
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while count < most:
                for number in range(2 * count + 1, 2 * count + 101, 2):
                    writer.write(frame(HEADERS, END_HEADERS, number))
                    writer.write(frame(DATA, END_STREAM, number, message) + beside)
                await reader.readexactly(50 * len(ANSWER))
                count += 50
    writer.close()
    await answering
    return count


@pytest.mark.parametrize("message", [b"", bytes(relay.USEFUL_BYTES - 1)])
async def test_answered_calls_without_a_message_are_taken_slowly(
    wire: Wire, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers allow no further frames. Messages of a few bytes do not either."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.5)
    began = (loop := asyncio.get_running_loop()).time()
    count = await answered_calls(wire, 4_000, message)
    seconds = loop.time() - began
    assert count <= relay.FRAMES_AT_ONCE + relay.FRAMES_PER_SECOND * (seconds + 1)


@pytest.mark.parametrize(("size", "pings"), [(relay.USEFUL_BYTES, 0), (9 * relay.USEFUL_BYTES, 6)])
async def test_frames_of_calls_that_are_answered_pass_at_any_rate(
    wire: Wire, size: int, pings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers to calls with a message allow further frames: calls, and what clients send beside
    them."""
    monkeypatch.setattr(relay, "FLOOD_SECONDS", 0.1)
    count = 2 * relay.FRAMES_AT_ONCE
    beside = pings * frame(PING, 0, 0, bytes(8))
    assert await answered_calls(wire, count, bytes(size), beside) == count


async def test_calls_in_one_turn_of_the_event_loop_are_bounded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all connections together, and all calls are passed on."""
    calls = b"".join(frame(HEADERS, END_HEADERS, number) for number in range(1, 501, 2))
    monkeypatch.setattr(turn, "CALLS", 10)
    counts = [0]
    async with wired(tmp_path) as wire:
        for _ in range(MOST):
            await wire.connect(START + calls)
        async with asyncio.timeout(PATIENCE):
            while counts[-1] < MOST * 250:
                await asyncio.sleep(0)
                counts.append(len(wire.streams))
    # A turn of this task may span parts of several turns.
    assert max(after - before for before, after in pairwise(counts)) <= 5 * turn.CALLS


async def test_open_calls_of_a_connection_are_bounded(wire: Wire) -> None:
    """Also where gRPC's server does not answer them."""
    calls = (frame(HEADERS, END_HEADERS, number) for number in range(1, 601, 2))
    reader, _ = await wire.connect(START + b"".join(calls))
    assert f"more than {relay.OPEN_STREAMS} calls" in await reason(reader)
    await until(lambda: not len(wire.streams))


async def test_a_call_without_a_handler_ends(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, with its connection; one with a handler goes on."""
    handled, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    assert wire.streams.claim(stream.name) is stream
    monkeypatch.setattr(relay, "READ_SECONDS", 0.1)
    ignored, _ = await wire.connect(START + CALL)
    assert await ended(ignored)
    await until(lambda: list(wire.streams) == [stream])
    assert not handled.at_eof()


async def test_a_call_that_is_claimed_counts_once(wire: Wire) -> None:
    """However often handlers ask for its name, its connection makes room after the answer."""
    reader, _ = await wire.connect(START + CALL)
    _, core = await wire.cores.get()
    stream = await wire.stream()
    assert wire.streams.claim(stream.name) is stream
    assert [wire.streams.claim(stream.name) for _ in range(3)] == [None] * 3
    stream.take()
    wire.streams.answer(stream)
    core.write(ANSWER)
    assert await reader.readexactly(len(ANSWER))
    for _ in range(MOST):
        await wire.connect(START)
    assert "another client takes this place" in await reason(reader)


async def test_the_connection_of_the_oldest_unread_answer_makes_room(wire: Wire) -> None:
    """All its calls end at once, and the client is told why."""
    reader, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    stream.expel()
    assert not len(wire.streams)
    assert "too many calls" in await reason(reader)


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends; its last bytes may be lost where more was sent than read."""
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            await reader.read()
    return True


async def test_waiting_connections_make_room(wire: Wire) -> None:
    """One with a message under way waits, too; one whose message is being answered does not."""
    busy, _ = await wire.connect(START + CALL)
    (await wire.stream()).take()
    slow, _ = await wire.connect(START + CALL + frame(DATA, 0, 1, b"x"))
    await arrived(wire, 1)
    newest, _ = await wire.connect(START)
    assert "another client takes this place" in await reason(slow)
    await wire.cores.get()
    assert len(wire.connections.connections) == MOST
    assert not busy.at_eof() and not newest.at_eof()


async def test_no_room_where_all_are_busy(wire: Wire) -> None:
    """A newcomer is told to come back, until an answer has been sent."""
    for _ in range(MOST):
        await wire.connect(START + CALL)
        _, core = await wire.cores.get()
    await until(lambda: len(wire.streams) == MOST)
    for stream in wire.streams:
        stream.take()
    refused, _ = await wire.connect(b"")
    assert "Try again" in await reason(refused)
    core.write(ANSWER)
    await until(lambda: len(wire.streams) < MOST)
    await wire.connect(START)
    await wire.cores.get()


async def test_calls_of_a_crowd_make_room_for_another_client(wire: Wire) -> None:
    """One that has all places with complete messages: its newest connection ends, and is told
    why."""
    crowd = []
    for count in range(1, MOST + 1):
        crowd.append(await wire.connect(START + CALL))
        await until(lambda count=count: len(wire.streams) == count)  # type: ignore[misc]
    for stream in wire.streams:
        stream.take()
    other, _ = await wire.connect(START, "127.0.0.2")
    assert "another client takes this place" in await reason(crowd[-1][0])
    assert not crowd[0][0].at_eof() and not other.at_eof()
    assert len(wire.connections.connections) == MOST


async def test_a_client_that_does_not_take_its_answer(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is disconnected: where it does not read, and where it allows no byte of the answer."""
    monkeypatch.setattr(relay, "READ_SECONDS", 0.2)
    _, writer = await wire.connect(START + CALL)
    _, core = await wire.cores.get()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    core.write(1000 * frame(DATA, 0, 1, bytes(16_000)))
    await until(lambda: not wire.connections.connections)
    reader, _ = await wire.connect(START + CALL)
    stream = await wire.stream()
    stream.take()
    wire.streams.answer(stream)
    assert await ended(reader)


async def test_a_server_that_leaves_takes_the_client_with_it(wire: Wire) -> None:
    reader, _ = await wire.connect(START)
    _, core = await wire.cores.get()
    core.write(ANSWER)
    core.close()
    assert await reader.read() == ANSWER
