"""Connections of the load generator: each request ends once, with its answer or a failure."""

# mypy: disable-error-code=unreachable
# mypy does not know that a property may change between two lines.

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.load.connection import FAILED, TIMED_OUT, Connection, connect, connect_to
from tests.shoal.load.fakes import HORSE, Handle, good, read_one, response, served

REQUEST = b"POST /predict HTTP/1.1\r\nhost: shoal\r\ncontent-length: 6\r\n\r\npixels"
PATIENCE = 60.0


@asynccontextmanager
async def connected(handle: Handle) -> AsyncIterator[Connection]:
    """Yields a connection to a server that calls `handle`."""
    async with served(handle) as url:
        connection = await connect_to(urllib.parse.urlsplit(url))
        yield connection
        connection.close()


def answering(*parts: bytes) -> Handle:
    """Returns a handler that reads one request, sends `parts` and closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never answers, and waits until the client closes the connection."""
    await reader.read()


async def test_connection_answers_several_requests() -> None:
    """A connection is busy from the request to its answer, and takes the next one afterwards."""
    async with connected(good) as connection:
        for _ in range(3):
            assert connection.usable and not connection.busy
            pending = asyncio.create_task(connection.request(REQUEST, PATIENCE))
            await asyncio.sleep(0)
            assert connection.busy
            assert await pending == (200, HORSE)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([response()[:20], response()[20:60], response()[60:]], (200, HORSE)),
        (
            [
                b"HTTP/1.1 413 Large\r\ntransfer-encoding: chunked\r\n\r\n",
                b"4\r\nab",
                b"cd\r\n2\r\nef\r\n0\r\n\r\n",
            ],
            (413, b"abcdef"),
        ),
        ([response(b"", "503 Service Unavailable")], (503, b"")),
    ],
    ids=["three packets", "chunks", "empty"],
)
async def test_connection_joins_the_parts_of_a_body(
    parts: list[bytes], expected: tuple[int, bytes]
) -> None:
    """The status and the whole body arrive, however the server divides them."""
    async with connected(answering(*parts)) as connection:
        assert await connection.request(REQUEST, PATIENCE) == expected


@pytest.mark.parametrize(
    "parts",
    [[], [b"HTTP/1.1 200 OK\r\n"], [response()[:-1]]],
    ids=["no answer", "half a header", "half a body"],
)
async def test_connection_reports_a_broken_answer_as_failed(parts: list[bytes]) -> None:
    """A request without a complete answer ends with FAILED and an empty body, and the connection
    is not used again."""
    async with connected(answering(*parts)) as connection:
        assert await connection.request(REQUEST, PATIENCE) == (FAILED, b"")
        assert not connection.usable and not connection.busy
        assert await connection.request(REQUEST, PATIENCE) == (FAILED, b"")


async def test_connection_ends_each_request_once() -> None:
    """An answer is not followed by a failure when the connection closes or is cut afterwards."""
    answers: list[tuple[int, bytes]] = []
    answered = asyncio.Event()

    def on_answer(status: int, body: bytes) -> None:
        answers.append((status, body))
        answered.set()

    async with connected(answering(response())) as connection:
        connection.send(REQUEST, on_answer)
        await answered.wait()
        connection.time_out()
    assert answers == [(200, HORSE)]


async def test_connection_ignores_answers_to_no_request() -> None:
    """The second of two answers to one request is not taken for the answer to the next request."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        writer.write(response(b"first") + response(b"second"))
        await read_one(reader)
        writer.write(response(b"third"))
        await silent(reader, writer)

    async with connected(handle) as connection:
        assert await connection.request(REQUEST, PATIENCE) == (200, b"first")
        assert await connection.request(REQUEST, PATIENCE) == (200, b"third")


async def test_connection_closes_when_the_answer_is_not_http() -> None:
    """The request fails at once, although the server keeps the connection open."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        writer.write(b"not HTTP at all\r\n\r\n")
        await silent(reader, writer)

    async with connected(handle) as connection:
        assert await connection.request(REQUEST, PATIENCE) == (FAILED, b"")
        assert not connection.usable


async def test_connection_may_send_from_the_callback() -> None:
    """The connection is free when the callback runs, so that a closed loop sends without delay."""
    answers: list[int] = []
    done = asyncio.Event()

    async with connected(good) as connection:

        def on_answer(status: int, body: bytes) -> None:
            answers.append(status)
            if len(answers) < 3:
                connection.send(REQUEST, on_answer)
            else:
                done.set()

        connection.send(REQUEST, on_answer)
        await asyncio.wait_for(done.wait(), PATIENCE)
    assert answers == [200, 200, 200]


async def test_connection_is_cut_when_an_answer_is_late() -> None:
    """The request ends with TIMED_OUT, and the server sees the connection close."""
    closed = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await silent(reader, writer)
        finally:
            closed.set()

    async with connected(wait) as connection:
        assert await connection.request(REQUEST, 0.01) == (TIMED_OUT, b"")
        assert not connection.usable
        await asyncio.wait_for(closed.wait(), PATIENCE)


async def test_connection_follows_connection_close() -> None:
    """After an answer with `Connection: close` the connection is not usable."""
    closing = response().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        writer.write(closing)
        await silent(reader, writer)  # the client closes first

    async with connected(handle) as connection:
        assert await connection.request(REQUEST, PATIENCE) == (200, HORSE)
        assert not connection.usable


async def test_closing_a_connection_fails_its_request() -> None:
    """A request that awaits its answer gets FAILED when the connection is closed."""
    async with connected(silent) as connection:
        pending = asyncio.create_task(connection.request(REQUEST, PATIENCE))
        await asyncio.sleep(0)
        connection.close()
        assert await pending == (FAILED, b"")


async def test_connect_raises_when_no_server_accepts() -> None:
    """A refused connection, and a server without TLS behind an https URL, raise OSError."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response())
        await silent(reader, writer)

    async with served(plain) as url:
        secure = urllib.parse.urlsplit(url)._replace(scheme="https")
        with pytest.raises(OSError, match="SSL"):
            await connect_to(secure)
    with pytest.raises(ConnectionRefusedError):
        await connect_to(urllib.parse.urlsplit(url))


async def test_connect_uses_the_local_address() -> None:
    """The server sees connections come from `local_host`."""
    peers: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[0])
        await good(reader, writer)

    async with served(handle) as url:
        port = urllib.parse.urlsplit(url).port
        assert port is not None
        for local_host in (None, "127.0.0.2"):
            connection = await connect("127.0.0.1", port, local_host=local_host)
            assert await connection.request(REQUEST, PATIENCE) == (200, HORSE)
            connection.close()
    assert peers == ["127.0.0.1", "127.0.0.2"]
