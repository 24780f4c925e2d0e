"""Any bytes in any pieces: what a connection holds, does in one turn, and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from service.server.connection import (
    HEAD_BYTES,
    HEAD_FIELDS,
    PIECE_BYTES,
    TURN,
    Connection,
)
from service.server.connection_limit import Connections
from service.server.transport import READ_BYTES

TURNS = 100_000
"""Turns of the event loop after which a connection is stuck."""
HOST = b" HTTP/1.1\r\nHost: s\r\n"
OFFER = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
SHAPES = (
    b"GET /" + HOST + b"\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET /" + HOST,
    b"GET /" + HOST + OFFER + b"\r\n",
    b"GET /" + HOST + b"Connection: close\r\n\r\n",
    b"POST /" + HOST + OFFER + b"Content-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n",
    b"PUT /" + HOST + b"Content-Length: 8\r\n\r\n12345678",
    b"POST /" + HOST + b"Content-Length: 300000\r\n\r\n",
    b"POST /" + HOST + CHUNKED,
    b"PUT /" + HOST + CHUNKED,
    b"CONNECT s:1" + HOST + b"\r\n",
    b"1\r\nx\r\n",
    b"4\r\n\r\n\r\n\r\n",
    b"5;extension\r\n12345\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: trailer\r\n\r\n",
    b"x: y\r\n",
    b"x:\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"a" * 1000,
)
STREAMS = st.lists(
    st.one_of(
        st.sampled_from(SHAPES),
        st.tuples(st.sampled_from(SHAPES), st.sampled_from([9, 300, 20_000])).map(
            lambda repeated: (repeated[0] * repeated[1])[: 4 * READ_BYTES]
        ),
        st.binary(max_size=50),
    ),
    min_size=1,
    max_size=8,
).map(b"".join)
SIZES = st.lists(
    st.one_of(st.integers(1, 9), st.integers(1, READ_BYTES), st.just(READ_BYTES)),
    min_size=1,
    max_size=30,
)


class Wire(asyncio.Transport):
    """Takes everything that is written, and remembers whether it is to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.reading, self.closing = True, False

    def writelines(self, chunks: Iterable[Any]) -> None:
        for chunk in chunks:
            self.sent += chunk

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Counted(Connection):
    """Counts what it does in one turn of the event loop, and checks what it holds after it."""

    started = 0

    def _parse(self, data: bytes) -> None:
        self.started = self.work = 0
        super()._parse(data)
        assert self.started <= 1, "requests"
        assert self.work <= 4 * (TURN + PIECE_BYTES), "callbacks of the parser"
        if not self.transport.is_closing():
            assert len(self._unparsed) <= 2 * READ_BYTES
            assert not self.pipeline
            assert len(self.headers) <= HEAD_FIELDS
            assert sum(len(name) + len(value) for name, value in self.headers) <= HEAD_BYTES
            untaken = b"" if self.cycle is None else self.cycle.body  # type: ignore[redundant-expr]
            assert len(untaken) <= HIGH_WATER_LIMIT + READ_BYTES

    def _start_asgi_task(self, *arguments: Any) -> None:
        self.started += 1
        super()._start_asgi_task(*arguments)

    def on_message_begin(self) -> None:
        self.work += 1
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.work += 1
        super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self.work += 1
        super().on_body(body)


async def fed(stream: bytes, sizes: list[int], ahead: bool) -> tuple[list[bytes], Wire, bool]:
    """The bodies that an application was given by a connection that gets `stream` in pieces of
    `sizes`, repeated, what was sent, and whether the connection was closed. PUT is answered before
    its body is read. `ahead`: a piece arrives although reading is paused, as a transport may
    deliver one."""
    bodies: list[bytes] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["method"] != "PUT"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        await asyncio.sleep(0)
        bodies.append(body)
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(application, lifespan="off", log_config=None, proxy_headers=False)
    connection = Counted(config=config, server_state=Connections(9), app_state={})
    connection.connection_made(wire := Wire())
    at = turn = 0
    while not wire.closing and (at < len(stream) or connection._unparsed or connection.tasks):
        if at < len(stream) and (
            wire.reading or (ahead and len(connection._unparsed) < READ_BYTES)
        ):
            size = sizes[turn % len(sizes)]
            connection.data_received(stream[at : at + size])
            at += size
        elif at >= len(stream) and not connection._unparsed and not connection._blocked():
            break  # the last request has no end
        await asyncio.sleep(0)
        turn += 1
        assert turn < TURNS, "stuck"
    closed = wire.closing
    connection.connection_lost(None)
    await asyncio.gather(*connection.tasks)
    assert not connection.server_state.waiting and not connection.server_state._networks
    return bodies, wire, closed


@settings(max_examples=200, deadline=None)
@given(STREAMS, SIZES, st.booleans())
def test_any_bytes_in_any_pieces(stream: bytes, sizes: list[int], ahead: bool) -> None:
    """A connection starts one request in a turn of the event loop, parses a bounded number of
    pieces, and holds no more than its module says."""
    if len(stream) / max(sizes) > 2000:
        sizes = [*sizes, READ_BYTES]
    asyncio.run(fed(stream, sizes, ahead))


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["length", "chunks", "offer", "early"]),
        st.one_of(
            st.binary(max_size=30),
            st.integers(0, 200_000).map(bytes),
            st.integers(1, 200).map(lambda count: b"\r\n\r\n" * count),
        ),
    ),
    min_size=1,
    max_size=12,
)


def request(kind: str, body: bytes) -> bytes:
    if kind == "chunks":
        chunks = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        return b"POST /" + HOST + CHUNKED + framed + b"0\r\n\r\n"
    head = (b"PUT /" if kind == "early" else b"POST /") + HOST + (OFFER if kind == "offer" else b"")
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


@settings(max_examples=200, deadline=None)
@given(REQUESTS, SIZES, st.booleans())
def test_pipelined_requests_are_answered_in_order(
    requests: list[tuple[str, bytes]], sizes: list[int], ahead: bool
) -> None:
    """Each with its own body, however many there are and wherever they are cut."""
    stream = b"".join(request(*each) for each in requests)
    if len(stream) / max(sizes) > 2000:
        sizes = [*sizes, READ_BYTES]
    bodies, wire, closed = asyncio.run(fed(stream, sizes, ahead))
    assert bodies == [b"" if kind == "early" else body for kind, body in requests]
    assert wire.sent.count(b"HTTP/1.1 200") == len(requests) and not closed
