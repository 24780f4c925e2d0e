"""Tests the start and the shutdown of the server, over real sockets."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from service.app import create_app
from service.exit_status import ExitStatus
from service.server.connection_limit import METRICS_CONNECTIONS, Connections
from service.server.server import ACCEPT_SECONDS, Server, SidePort
from service.settings import Settings
from tests.fakes import MODEL, FakeEngine
from tests.waiting import until

pytestmark = pytest.mark.slow
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Restores the handlers of signals, which servers set."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class FakeListener:
    """A server on another port that records its calls. `stop` waits for `done`."""

    def __init__(self, error: OSError | None = None) -> None:
        self.connections = Connections(1)
        self.calls: list[str] = []
        self.stopping, self.done = asyncio.Event(), asyncio.Event()
        self._error = error

    async def start(self) -> None:
        if self._error is not None:
            raise self._error
        self.calls.append("start")

    async def stop(self, seconds: float) -> None:
        self.calls.append(f"stop within {seconds:g} s")
        self.stopping.set()
        await self.done.wait()
        self.calls.append("stopped")


class Client:
    """A connection that stays open between two requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def get(self, path: str) -> str:
        """The head of the answer, in lower case."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        await self._reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
        return head

    async def closed(self) -> bool:
        return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


class Running:
    """A server in this process."""

    def __init__(self, server: Server, address: tuple[str, int]) -> None:
        self.server = server
        self._address = address

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection(*self._address))


@asynccontextmanager
async def running(
    settings: Settings, listener: FakeListener | None = None
) -> AsyncIterator[Running]:
    app = create_app(settings, FakeEngine().load)
    if listener is not None:
        app.state.listeners = [listener]
    server = Server(app, settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        try:
            async with asyncio.timeout(PATIENCE):
                await until(lambda: server.started and app.state.service.engine.loaded)
                yield Running(server, listening.getsockname())
        finally:
            if listener is not None:
                listener.done.set()
            server.should_exit = True
            await asyncio.wait_for(serving, PATIENCE)


async def test_server_answers_new_connections_while_it_drains() -> None:
    """For `drain_delay` seconds a server that stops still accepts connections, and reports that it
    is not ready."""
    async with running(Settings(drain_delay=3)) as one:
        before = await one.connect()
        assert (await before.get("/readyz")).startswith("http/1.1 200")
        before.close()
        one.server.handle_exit(signal.SIGTERM, None)
        await until(lambda: one.server._service.draining)
        await asyncio.sleep(3 * ACCEPT_SECONDS)
        during = await one.connect()
        assert (await during.get("/readyz")).startswith("http/1.1 503")
        during.close()


async def test_server_answers_a_request_on_an_idle_connection_after_it_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection between two requests is not closed at once: a request that is under way is
    answered with `Connection: close`. New connections are not accepted any more."""
    monkeypatch.setattr("service.server.server.LINGER_SECONDS", PATIENCE)
    async with running(Settings()) as one:
        idle = await one.connect()
        assert "connection: close" not in await idle.get("/healthz")
        one.server.handle_exit(signal.SIGTERM, None)
        await until(lambda: not any(server.is_serving() for server in one.server.servers))
        answer = await idle.get("/healthz")
        assert answer.startswith("http/1.1 200") and "connection: close" in answer
        assert await idle.closed()
        idle.close()


async def test_server_stops_its_listeners_before_the_application() -> None:
    """Other ports are served from the start, and the application runs until they have stopped."""
    listener = FakeListener()
    async with running(Settings(shutdown_timeout=20), listener) as one:
        assert listener.calls == ["start"]
        one.server.handle_exit(signal.SIGTERM, None)
        await listener.stopping.wait()
        assert listener.calls[1:] == ["stop within 20 s"]
        await asyncio.sleep(0.5)  # the application would end
        loaded = one.server._service.loaded
        image = np.zeros((32, 32, 3), np.uint8)
        assert (await loaded.submit(image, 5.0)).value.model is MODEL
    assert listener.calls[2:] == ["stopped"]


async def test_server_exits_if_a_port_is_not_available(caplog: pytest.LogCaptureFixture) -> None:
    """If another port cannot be served, the process exits with a status of its own, and the log
    has the reason. Ports that are served already are closed."""
    app = create_app(Settings(), FakeEngine().load)
    first = FakeListener()
    first.done.set()
    app.state.listeners = [first, FakeListener(OSError("cannot listen on 127.0.0.1:9"))]
    with pytest.raises(SystemExit) as caught:
        await Server(app, Settings(port=0)).startup()
    assert caught.value.code == ExitStatus.CANNOT_LISTEN
    assert "cannot listen on 127.0.0.1:9" in caplog.text
    assert first.calls == ["start", "stop within 0 s", "stopped"]


async def test_server_exits_before_it_starts_if_its_port_is_not_available(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No other port is served, and no model is loaded."""
    app = create_app(Settings(), FakeEngine().load)
    app.state.listeners = [listener := FakeListener()]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            await Server(app, Settings(port=port)).startup()
    assert caught.value.code == ExitStatus.CANNOT_LISTEN
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in caplog.text
    assert listener.calls == []


async def test_side_port_that_is_in_use_raises_an_error() -> None:
    """The error names the address, and the process does not exit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"metrics cannot listen on 127.0.0.1:{port}: Address"):
            await SidePort(Starlette(), Settings(), port).start()


def test_server_ignores_further_sigterms() -> None:
    """A second SIGTERM does not end the process before requests have been answered."""
    server = Server(create_app(Settings(), FakeEngine().load), Settings())
    for _ in range(3):
        server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit


async def test_side_port_serves_an_application(caplog: pytest.LogCaptureFixture) -> None:
    """A side port serves from `start` to `stop`, has its own limit of connections, and logs its
    address."""
    caplog.set_level("INFO")

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    port = SidePort(Starlette(routes=[Route("/", hello)]), Settings(), 0)
    await port.start()
    address = port.servers[0].sockets[0].getsockname()
    assert f"metrics on http://{address[0]}:{address[1]}" in caplog.text
    client = Client(*await asyncio.open_connection(*address))
    assert (await client.get("/")).startswith("http/1.1 200")
    assert port.connections.held == 1 < METRICS_CONNECTIONS
    await port.stop(1.0)
    assert await client.closed()
    client.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
