"""What a client may do to a connection, over real sockets and with short patience."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import contextlib
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn

from service.http.context import CONTEXT
from service.server import connection as connections
from service.server.connection import HEAD_BYTES, Connection
from service.server.connection_limit import PROGRESS_BYTES, Connections, usable_limit
from service.server.transport import Incoming
from service.settings import Settings
from tests.service.server.wire import Sent

pytestmark = pytest.mark.slow
PATIENCE = 10.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: shoal\r\n"
GET = b"GET / HTTP/1.1\r\nHost: shoal\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

App = Callable[[Any, Any, Any], Awaitable[None]]

writelines = getattr(asyncio.selector_events, "_SelectorSocketTransport").writelines  # noqa: B009
needs_flow_control = pytest.mark.skipif(
    sys.version_info >= (3, 12) and "_maybe_pause_protocol" not in writelines.__code__.co_names,
    reason="asyncio's writelines ignores flow control in this version of Python. The service runs "
    "on uvloop",
)


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


async def answers_much(scope: Any, receive: Any, send: Any) -> None:
    """Answers more than any buffer holds, in one message."""
    headers = [(b"content-length", b"50000000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(50_000_000)})


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "REST_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)


@asynccontextmanager
async def listening(
    app: App = refuses,
    most: int = 100,
    keep_alive: int = 1,
    lost: Callable[[], None] = lambda: None,
) -> AsyncIterator[tuple[str, int]]:
    """The address of a server of `app` with at most `most` connections. `lost` is called when a
    connection is lost."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=keep_alive)
    state = Connections(most)

    class Reporting(Connection):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            lost()

    def accept() -> Incoming:
        return Incoming(Reporting(config=config, server_state=state, app_state={}))

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for task in state.tasks:
            task.cancel()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def client(
    app: App = refuses,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of `app` that keeps idle ones for a second."""
    async with listening(app) as address:
        reader, writer = await asyncio.open_connection(*address)
        try:
            async with asyncio.timeout(PATIENCE):
                yield reader, writer
        finally:
            writer.close()


def problem(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    return json.loads(body)


async def test_silent_connection_is_closed() -> None:
    """A connection on which nothing arrives is closed after the keep-alive time."""
    async with client() as (reader, _):
        began = asyncio.get_running_loop().time()
        assert await reader.read() == b""
        assert 0.9 < asyncio.get_running_loop().time() - began < 5


async def test_slow_head_is_closed() -> None:
    """Single bytes do not keep a connection open: a head has one deadline."""
    async with client() as (reader, writer):
        for byte in HEAD:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
            if reader.at_eof():
                break
        with contextlib.suppress(ConnectionError):  # by a byte that came after the end
            assert await reader.read() == b""
        assert byte != HEAD[-1]


@pytest.mark.parametrize("flood", [b"x: y\r\n" * 20_000, b"x: " + bytes([121]) * 120_000])
async def test_large_head_gets_431(flood: bytes) -> None:
    """Too many headers, or too long ones, get 431 and close the connection."""
    async with client() as (reader, writer):
        writer.write(HEAD + flood)
        told = problem(await reader.read())
        assert (told["status"], told["code"]) == (431, "head_too_large")


async def test_malformed_request_gets_a_problem() -> None:
    """Data that is not HTTP gets 400 with a problem document."""
    async with client() as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        told = problem(await reader.read())
        assert (told["status"], told["code"]) == (400, "bad_request")


async def test_rejected_client_that_goes_on_is_closed() -> None:
    """The client can read the answer, and what it sends afterwards is read for a limited time."""
    async with client() as (reader, writer):
        writer.write(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():  # or the time of this test is up
                writer.write(bytes(1000))
                await writer.drain()
                await asyncio.sleep(0.02)


async def test_rejected_client_that_ends_may_send_again() -> None:
    """After a short rest of the request, the connection serves further requests."""
    async with client() as (reader, writer):
        writer.write(HEAD + b"Content-Length: 10\r\n\r\n12345")
        await reader.readuntil(b"ok")
        writer.write(b"67890")
        await asyncio.sleep(0.5)  # longer than a rest may take
        writer.write(GET)
        await reader.readuntil(b"ok")
        assert await reader.read() == b""


@needs_flow_control
async def test_client_that_does_not_read_is_closed() -> None:
    """An answer that is not read does not wait forever."""
    async with client(floods) as (reader, writer):
        writer.write(GET)
        await asyncio.sleep(1.0)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 20):
                received += len(chunk)
        assert received < 50_000_000


async def test_slow_request_is_not_closed() -> None:
    """No deadline applies to a client that waits for its answer."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(1.2)
        await refuses(scope, receive, send)

    async with client(slow) as (reader, writer):
        writer.write(HEAD + b"Content-Length: 5\r\n\r\n12345")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")


async def test_answer_is_one_write() -> None:
    """Head and body are sent in one call, as soon as the answer is complete."""
    transport = Sent()
    sent_by_then: list[bytes] = []

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        await refuses(scope, receive, send)
        sent_by_then.extend(transport.sent)

    config = uvicorn.Config(looks, lifespan="off", log_config=None)
    connection = Connection(config=config, server_state=Connections(9), app_state={})
    connection.connection_made(transport)
    connection.data_received(GET)
    await asyncio.wait(connection.tasks)
    assert transport.sent == sent_by_then == [ANSWER]
    connection.connection_lost(None)


async def test_oldest_waiting_connection_makes_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be idle, silent, or in the middle of a head, which gets 503. The log says so once."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    async with listening(most=3, keep_alive=60) as address, asyncio.timeout(PATIENCE):
        newcomers = []
        idle, half, silent = [await asyncio.open_connection(*address) for _ in range(3)]
        idle[1].write(GET)
        await idle[0].readuntil(b"ok")
        half[1].write(HEAD)
        await asyncio.sleep(0.05)
        for waiting in half, silent, idle:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(GET)
            await reader.readuntil(b"ok")
            answer = await waiting[0].read()
            assert answer.startswith(b"HTTP/1.1 503") if waiting is half else not answer
            waiting[1].close()
            newcomers.append(writer)
        for writer in newcomers:
            writer.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_new_connection_is_rejected_when_all_are_busy() -> None:
    """The client gets 503, and the connections with requests are not affected."""
    done = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await done.wait()
        await refuses(scope, receive, send)

    async with listening(slow, most=2) as address, asyncio.timeout(PATIENCE):
        busy = [await asyncio.open_connection(*address) for _ in range(2)]
        for _, writer in busy:
            writer.write(GET)
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection(*address)
        told = problem(answer := await reader.read())
        assert (told["status"], told["code"]) == (503, "too_many_connections")
        assert b"retry-after: 1\r\n" in answer
        writer.close()
        done.set()
        for reader, writer in busy:
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.close()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET)
        await reader.readuntil(b"ok")
        writer.close()


async def reads(scope: Any, receive: Any, send: Any) -> None:
    """Answers when the body is complete."""
    while (await receive()).get("more_body"):
        pass
    await refuses(scope, receive, send)


POST = HEAD + b"Content-Length: 100000\r\n"
UNFINISHED = {
    "silent": (reads, b""),
    "half a head": (reads, HEAD),
    "no body": (reads, POST + b"\r\n"),
    "no body after 100": (reads, POST + b"Expect: 100-continue\r\n\r\n"),
    "half a body": (reads, POST + b"\r\n" + bytes(50_000)),
    "a chunk": (reads, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
    "no last chunk": (reads, HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"),
    "no rest after an answer": (refuses, POST + b"\r\n12345"),
    "idle": (refuses, GET),
    "not HTTP": (refuses, b"nonsense\r\n\r\n"),
    "a head too large": (refuses, GET[:-2] + b"x: y\r\n" * 200),
    "an answer that is not read": (floods, GET),
    "answers that are not read": (answers_much, GET * 9),
}


@pytest.mark.parametrize(("app", "sent"), UNFINISHED.values(), ids=UNFINISHED)
async def test_waiting_connection_makes_room(
    app: App, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection makes room while it waits for a head, a body, its rest, or a reader."""
    for name in ("HEAD_SECONDS", "REST_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(connections, name, 60)

    async def first_only(scope: Any, receive: Any, send: Any) -> None:
        await (refuses if scope["path"] == "/new" else app)(scope, receive, send)

    async with listening(first_only, most=1, keep_alive=60) as address:
        async with asyncio.timeout(PATIENCE):
            with socket.socket() as first:
                first.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(first, address)
                await loop.sock_sendall(first, sent)
                await asyncio.sleep(0.1)
                reader, writer = await asyncio.open_connection(*address)
                writer.write(GET.replace(b"/", b"/new", 1))
                assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                writer.close()


async def test_requests_of_a_crowd_make_room_for_another_client() -> None:
    """One that has all places with complete requests: its newest gets 503, and the other client is
    answered."""
    begun, done = asyncio.Semaphore(0), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["client"][0] != "127.0.0.2":
            begun.release()
            await done.wait()
        await refuses(scope, receive, send)

    async with listening(slow, most=3) as address, asyncio.timeout(PATIENCE):
        crowd = []
        for _ in range(3):
            crowd.append(await asyncio.open_connection(*address))
            crowd[-1][1].write(GET)
            await begun.acquire()
        reader, writer = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()
        told = problem(answer := await crowd[2][0].read())
        assert told["code"] == "too_many_connections" and b"retry-after: 1\r\n" in answer
        done.set()
        for reader, _ in crowd[:2]:
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        for _, writer in crowd:
            writer.close()


INTERRUPTED: dict[str, tuple[App, bytes, bool]] = {
    "silent": (refuses, b"", False),
    "idle": (refuses, GET, False),
    "half a head": (refuses, HEAD, True),
    "half a head behind an answer": (refuses, GET + HEAD, True),
    "half a body": (reads, POST + b"\r\nx", True),
    "begun answer": (floods, GET, False),
}


@pytest.mark.parametrize(("app", "sent", "is_told"), INTERRUPTED.values(), ids=INTERRUPTED)
async def test_a_connection_that_makes_room(app: App, sent: bytes, is_told: bool) -> None:
    """The client gets 503 where it has begun a request, and no part of the answer was sent."""
    one, wire = on_a_wire(app, state := Connections(1))
    if sent:
        one.data_received(sent)
    for _ in range(5):
        await asyncio.sleep(0)
    before = len(wire.sent)
    state.remove(one)
    one.make_room()
    assert wire.closed
    assert b"".join(wire.sent[before:]).startswith(b"HTTP/1.1 503") == is_told
    for task in one.tasks:
        task.cancel()
    one.connection_lost(None)
    assert not state.waiting and not state.held


def on_a_wire(app: App, state: Connections) -> tuple[Connection, Sent]:
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    one = Connection(config=config, server_state=state, app_state={})
    one.connection_made(wire := Sent())
    return one, wire


async def test_connections_make_room_by_their_last_progress() -> None:
    """Single bytes are no progress, and an upload in progress makes room last."""
    state = Connections(4)
    (upload, _), (slow, _), (silent, _) = (on_a_wire(reads, state) for _ in range(3))
    idle, _ = on_a_wire(refuses, state)
    upload.data_received(POST + b"\r\n")
    slow.data_received(POST + b"\r\n")
    idle.data_received(GET)
    await asyncio.sleep(0.01)
    upload.data_received(bytes(PROGRESS_BYTES))
    for _ in range(100):
        slow.data_received(b"x")
    ended: list[Connection] = []
    for one in upload, slow, silent, idle:
        one.make_room = partial(ended.append, one)  # type: ignore[method-assign]
    for _ in range(4):
        newcomer, _ = on_a_wire(reads, Connections(9))
        assert state.admit(newcomer)
        state.waiting.pop(newcomer)
    assert ended == [slow, silent, idle, upload]
    assert not state.admit(newcomer)
    for one in ended:
        one.connection_lost(None)


async def test_connection_with_a_complete_request_stays() -> None:
    """From its complete request on, a connection stays unless its client stops reading."""
    begun = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await asyncio.sleep(PATIENCE)

    state = Connections(1)
    one, wire = on_a_wire(slow, state)
    one.data_received(POST.replace(b"100000", b"2") + b"\r\n1")
    assert list(state.waiting) == [one]
    one.data_received(b"2")
    await begun.wait()
    newcomer, _ = on_a_wire(slow, Connections(9))
    assert not state.admit(newcomer)
    one.pause_writing()
    assert list(state.waiting) == [one]
    one.resume_writing()
    assert list(state.waiting) == [one], "it is no faster than an upload"
    assert state.admit(newcomer) and wire.closed
    state.waiting.pop(newcomer)
    one.resume_writing()
    assert not state.waiting, "it has given its place away"
    for task in one.tasks:
        task.cancel()
    one.connection_lost(None)


async def test_connection_whose_answer_has_begun_makes_room() -> None:
    """A connection may make room while its answer is sent, and each sent part is progress."""
    go_on = asyncio.Event()

    async def in_parts(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"2", "more_body": True})
        await asyncio.sleep(PATIENCE)

    state = Connections(2)
    one, _ = on_a_wire(in_parts, state)
    one.data_received(GET)
    assert not state.waiting
    for _ in range(3):
        await asyncio.sleep(0)
    other, _ = on_a_wire(reads, state)
    assert list(state.waiting) == [one, other]
    go_on.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert list(state.waiting) == [other, one]
    for task in one.tasks:
        task.cancel()
    one.connection_lost(None)
    other.connection_lost(None)


async def test_client_that_sent_too_much_can_read_the_answer() -> None:
    """The rest of its data is read, also where reading was paused before."""
    one, wire = on_a_wire(refuses, Connections(1))
    one.data_received(GET + b"\r\n" * HEAD_BYTES)
    while not one._discarding:  # noqa: ASYNC110  # its turns
        await asyncio.sleep(0)
    assert wire.reading
    one.connection_lost(None)


async def test_body_is_dropped_once_its_answer_has_begun() -> None:
    """The body of a client that does not read is not kept."""
    resume = asyncio.Event()

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await resume.wait()

    one, _ = on_a_wire(answers, Connections(1))
    one.data_received(POST + b"\r\n" + bytes(10_000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    one.data_received(bytes(10_000))
    one.pause_writing()
    assert one.cycle.response_started and not one.cycle.body
    for task in one.tasks:
        task.cancel()
    one.connection_lost(None)


@pytest.mark.parametrize(
    ("limits", "wanted", "possible", "raised_to"),
    [
        ((1024, 4096), 500, 500, 1024),
        ((1024, 1_048_576), 4096, 4096, 4160),
        ((256, 1024), 4096, 960, 1024),
        ((64, 64), 4096, 32, 64),
        ((64, 64), 20, 20, 64),
        ((64, resource.RLIM_INFINITY), 4096, 4096, 4160),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 4096, 4096, None),
    ],
)
def test_usable_limit_depends_on_descriptors(
    limits: tuple[int, int],
    wanted: int,
    possible: int,
    raised_to: int | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The soft limit is raised as far as allowed, and a warning says what to do about fewer."""
    soft = [limits[0]]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft[0], limits[1]))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: soft.append(new[0]))
    assert usable_limit(Settings(max_connections=wanted), 0) == possible
    assert soft[-1] == (raised_to or limits[0])
    assert bool(caplog.records) == (possible < wanted)


@pytest.mark.parametrize(
    ("ports", "possible"),
    [({}, 960), ({"grpc_port": 0}, 240), ({"metrics_port": 0}, 896)],
    ids=["one port", "grpc", "metrics"],
)
def test_usable_limit_counts_the_descriptors_of_all_ports(
    ports: dict[str, int], possible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be as many gRPC connections as over HTTP, and a few to the port for metrics."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: None)
    settings = Settings(max_connections=4096, **ports)  # type: ignore[arg-type]
    assert usable_limit(settings, 0) == possible


@pytest.mark.parametrize(
    ("limit", "decoders", "possible"), [(1024, 101, 859), (200, 101, 50), (1 << 20, 101, 4096)]
)
def test_descriptors_of_decoders(
    limit: int, decoders: int, possible: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections leave those that the decoders take; of very few, each gets a part."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: None)
    assert usable_limit(Settings(max_connections=4096), decoders) == possible


BODIES = {
    "all there": (b"2", b"12", True),
    "not all there": (b"2", b"1", False),
    "so large that reading pauses": (b"100000", bytes(100_000), False),
}


@pytest.mark.parametrize(("length", "body", "there"), BODIES.values(), ids=BODIES)
async def test_context_tells_the_application_about_its_client(
    length: bytes, body: bytes, there: bool
) -> None:
    """The context says whether the body is complete, and that the client disconnects."""
    whole: list[bool] = []
    left = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        whole.append(scope[CONTEXT].body_complete)
        scope[CONTEXT].cancel_on_disconnect()
        await receive()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            left.set()

    async with client(waits) as (_, writer):
        writer.write(HEAD + b"Content-Length: " + length + b"\r\n\r\n")
        if not there:
            await asyncio.sleep(0.1)
        writer.write(body)
        await asyncio.sleep(0.1)
        assert not left.is_set()
        writer.close()
        await left.wait()
    assert whole == [there]


async def test_pipelined_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes behind a request are neither parsed nor read before that request is answered."""
    seen: list[Connection] = []
    begun = asyncio.Event()
    complete = Connection.on_message_complete

    def on_message_complete(connection: Connection) -> None:
        seen.append(connection)
        complete(connection)

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        begun.set()
        await asyncio.sleep(PATIENCE)

    monkeypatch.setattr(Connection, "on_message_complete", on_message_complete)
    async with client(waits) as (_, writer):
        for _ in range(5):
            writer.write(HEAD + b"Content-Length: 2\r\n\r\n12")
            await begun.wait()
            await asyncio.sleep(0.05)
    assert len(seen) == 1


OFFER = b"GET / HTTP/1.1\r\nHost: shoal\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"


@pytest.mark.parametrize("one", [GET, OFFER, b"\r\n" * 50 + GET])
async def test_pipelined_requests_are_all_answered(one: bytes) -> None:
    """All requests are answered, however many arrive in one read."""
    async with client() as (reader, writer):
        writer.write(one * 3000)
        for _ in range(3000):
            await reader.readuntil(b"ok")


async def test_answer_precedes_the_rejection_of_the_next_request() -> None:
    """A malformed request does not affect the answer to the request before it."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.1)
        await refuses(scope, receive, send)

    async with client(slow) as (reader, writer):
        writer.write(GET + b"nonsense\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert problem(await reader.read())["code"] == "bad_request"


@pytest.mark.parametrize("fields", [b"x: y\r\n" * 200, b"a:\r\n" * 15_000])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
async def test_number_of_headers_is_limited(fields: bytes, end: bytes) -> None:
    """Too many small headers or trailers get 431."""
    async with client() as (reader, writer):
        writer.write(GET[:-2] + fields + end)
        assert problem(await reader.read())["code"] == "head_too_large"

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async with client(reads) as (reader, writer):
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + fields + end)
        assert problem(await reader.read())["code"] == "head_too_large"


@pytest.mark.parametrize("sent", [b"\r\n", GET + b"\r\n"], ids=["first", "after an answer"])
async def test_blank_line_does_not_keep_a_connection_open(sent: bytes) -> None:
    """Bytes that do not begin a request do not stop the keep-alive time."""
    async with client() as (reader, writer):
        writer.write(sent)
        if sent != b"\r\n":
            await reader.readuntil(b"ok")
        writer.write(b"\r\n")
        assert await reader.read() == b""


async def closes(scope: Any, receive: Any, send: Any) -> None:
    """Answers more than any buffer holds, in one message, and closes."""
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(50_000_000)})


@asynccontextmanager
async def unread(
    app: App, sent: bytes, *, most: int = 100
) -> AsyncIterator[tuple[tuple[str, int], asyncio.Event]]:
    """A server of `app` with a client that sends `sent` and reads nothing; the event happens when
    the server has no connection any more."""
    left = asyncio.Event()

    async with listening(app, most=most, lost=left.set) as address, asyncio.timeout(PATIENCE):
        with socket.socket() as stubborn:
            stubborn.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stubborn, address)
            await loop.sock_sendall(stubborn, sent)

            async def goes_on() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        await loop.sock_sendall(stubborn, b"x" if sent == GET else GET)
                        await asyncio.sleep(0.05)

            going_on = asyncio.ensure_future(goes_on())
            try:
                yield address, left
            finally:
                going_on.cancel()


@needs_flow_control
@pytest.mark.parametrize("sent", [GET, GET * 3, GET + b"POST / HT"])
@pytest.mark.parametrize("app", [floods, closes])
async def test_client_that_sends_but_does_not_read_is_closed(app: App, sent: bytes) -> None:
    """Neither further bytes nor the end of the answer stop the deadline for reading."""
    async with unread(app, sent) as (_, left):
        await left.wait()


async def test_half_closed_connection_that_does_not_read_is_closed() -> None:
    """The end of what the client sends closes the connection without waiting for it."""
    left = asyncio.Event()

    async def tells(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"50000000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(50_000_000)})

    async with listening(tells, lost=left.set) as address, asyncio.timeout(PATIENCE):
        with socket.create_connection(address) as stubborn:
            stubborn.sendall(GET)
            stubborn.shutdown(socket.SHUT_WR)
            await left.wait()


async def test_connection_with_an_unread_answer_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection replaces one whose answers are complete and unread."""
    monkeypatch.setattr(connections, "READ_SECONDS", 60)
    answered = asyncio.Event()

    async def first_much(scope: Any, receive: Any, send: Any) -> None:
        if answered.is_set():
            await refuses(scope, receive, send)
        else:
            await closes(scope, receive, send)
            answered.set()

    async with unread(first_much, GET, most=1) as (address, _):
        await answered.wait()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_answered_request_is_released() -> None:
    """An idle connection holds no memory of its last request."""
    config = uvicorn.Config(refuses, lifespan="off", log_config=None)
    one = Connection(config=config, server_state=Connections(9), app_state={})
    one.connection_made(Sent())
    one.data_received(GET[:-2] + b"X: " + b"x" * 50_000 + b"\r\n\r\n")
    await asyncio.wait(one.tasks)
    assert not any([one.url, one.headers, one.scope, one.cycle.scope])
    one.connection_lost(None)
