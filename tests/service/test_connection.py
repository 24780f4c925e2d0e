"""What a client may do to a connection, over real sockets and with short patience."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service import connection
from service.connection import Connection, Outgoing

pytestmark = pytest.mark.slow
PATIENCE = 10.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: shoal\r\n"
GET = b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

App = Callable[[Any, Any, Any], Awaitable[None]]


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    """Answers before it has read the body."""
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def floods(scope: Any, receive: Any, send: Any) -> None:
    """Answers more than any buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1000):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "REST_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(connection, name, 0.3)


@asynccontextmanager
async def client(
    app: App = refuses,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of `app` that keeps idle ones for a second."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=1)
    state = ServerState()

    def accept() -> Connection:
        return Connection(config=config, server_state=state, app_state={})

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(PATIENCE):
            yield reader, writer
    finally:
        writer.close()
        server.close()
        for task in state.tasks:
            task.cancel()


def problem(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    return json.loads(body)


async def test_silence() -> None:
    """A connection on which nothing ever arrives is closed after the keep-alive time."""
    async with client() as (reader, _):
        began = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        assert 0.9 < asyncio.get_running_loop().time() - began < 5


async def test_half_a_head() -> None:
    """A byte now and then does not keep a connection open: the head has its time in all."""
    async with client() as (reader, writer):
        for byte in HEAD:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        assert await reader.read() == b"" and byte != HEAD[-1]


@pytest.mark.parametrize("flood", [b"x: y\r\n" * 20_000, b"x: " + bytes([121]) * 120_000])
async def test_a_head_without_end(flood: bytes) -> None:
    """Many headers or a long one: 431, and the connection ends."""
    async with client() as (reader, writer):
        writer.write(HEAD + flood)
        told = problem(await reader.read())
        assert (told["status"], told["code"]) == (431, "head_too_large")


async def test_not_http() -> None:
    """What cannot be read as HTTP is told so as every other error is."""
    async with client() as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        told = problem(await reader.read())
        assert (told["status"], told["code"]) == (400, "bad_request")


async def test_who_goes_on_after_a_refusal_is_cut_off() -> None:
    """The answer can be read; what is sent after it is not read for ever."""
    async with client() as (reader, writer):
        writer.write(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():  # or the time of this test is up
                writer.write(bytes(1000))
                await writer.drain()
                await asyncio.sleep(0.02)


async def test_who_ends_after_a_refusal_may_ask_again() -> None:
    """A short rest is read, the connection serves on, and is closed when it falls idle."""
    async with client() as (reader, writer):
        writer.write(HEAD + b"Content-Length: 10\r\n\r\n12345")
        await reader.readuntil(b"ok")
        writer.write(b"67890")
        await asyncio.sleep(0.5)  # longer than a rest may take
        writer.write(GET)
        await reader.readuntil(b"ok")
        assert await reader.read() == b""


async def test_who_does_not_read_is_cut_off() -> None:
    """An answer that nobody takes does not wait for ever."""
    async with client(floods) as (reader, writer):
        writer.write(GET)
        await asyncio.sleep(1.0)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 20):
                received += len(chunk)
        assert received < 50_000_000


async def test_a_request_that_takes_long_is_left_alone() -> None:
    """None of the bounds touches a client that waits for its answer."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(1.2)
        await refuses(scope, receive, send)

    async with client(slow) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 5\r\n\r\n12345")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


class Sent(asyncio.Transport):
    """Remembers what was sent in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def writelines(self, chunks: Iterable[Any]) -> None:
        self.sent.append(b"".join(chunks))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    pause_reading = resume_reading = close


async def test_an_answer_is_one_write() -> None:
    """Head and body go out together, as soon as the answer is complete."""
    transport = Sent()
    sent_by_then: list[bytes] = []

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        await refuses(scope, receive, send)
        sent_by_then.extend(transport.sent)

    config = uvicorn.Config(looks, lifespan="off", log_config=None)
    connection = Connection(config=config, server_state=ServerState(), app_state={})
    connection.connection_made(transport)
    connection.data_received(GET)
    await asyncio.wait(connection.tasks)
    assert transport.sent == sent_by_then == [ANSWER]
    connection.connection_lost(None)


async def test_much_is_not_gathered() -> None:
    """What a client does not read must be felt by who writes it, and soon."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(bytes(40_000))
    assert transport.sent == []
    outgoing.write(bytes(40_000))
    assert transport.sent == [bytes(80_000)]


async def test_what_is_written_goes_out_when_the_turn_ends() -> None:
    """Also where an answer is not complete for long."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.write(b"b")
    assert transport.sent == []
    await asyncio.sleep(0)
    outgoing.write(b"c")
    await asyncio.sleep(0)
    assert transport.sent == [b"ab", b"c"]


async def test_closing_sends_what_was_written() -> None:
    """And nothing is written to a connection that has been closed."""
    outgoing = Outgoing(transport := Sent())
    outgoing.write(b"a")
    outgoing.close()
    outgoing.write(b"b")
    await asyncio.sleep(0)
    assert (transport.sent, transport.closed) == ([b"a"], True)
