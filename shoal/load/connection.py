"""An HTTP/1.1 connection that sends one request at a time, at the least CPU time Python allows.

`send` creates no future and no task: the caller passes a function, which is called once, with the
status and the body, or with FAILED or TIMED_OUT and an empty body. `request` is the same for
callers that await. Requests are bytes that go over the wire as they are.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from typing import cast

import httptools

FAILED, TIMED_OUT = 0, -1
"""Take the place of a status: the connection was refused, reset or closed; no answer in time."""

OnAnswer = Callable[[int, bytes], None]


class Connection(asyncio.Protocol):
    """A connection. `connect` opens one."""

    def __init__(self) -> None:
        """Creates the protocol of a connection that asyncio is about to open."""
        self.sent_at = 0.0
        """`time.monotonic()` of the last request."""
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._on_answer: OnAnswer | None = None
        self._body: list[bytes] = []

    @property
    def usable(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def busy(self) -> bool:
        """Whether a request awaits its answer."""
        return self._on_answer is not None

    def send(self, request: bytes, on_answer: OnAnswer) -> None:
        """Sends a request. The connection must be open and not busy.

        Args:
            request: The complete HTTP request.
            on_answer: Called once with the status and the body.
        """
        assert self._transport is not None and self._on_answer is None
        self._on_answer = on_answer
        self.sent_at = time.monotonic()
        self._transport.write(request)

    async def request(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Sends a request and returns the status and the body, FAILED or TIMED_OUT.

        Args:
            request: The complete HTTP request.
            seconds: Time limit, after which the connection is cut.
        """
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def on_answer(status: int, body: bytes) -> None:
            if not answer.done():
                answer.set_result((status, body))

        if not self.usable:
            return FAILED, b""
        self.send(request, on_answer)
        await asyncio.wait({answer}, timeout=seconds)
        if not answer.done():
            self.time_out()
        return await answer

    def time_out(self) -> None:
        """Cuts the connection. A request that awaits its answer gets TIMED_OUT."""
        if self._transport is not None:
            self._transport.abort()
        self._finish(TIMED_OUT)

    def close(self) -> None:
        """Closes the connection. A request that awaits its answer gets FAILED."""
        if self._transport is not None:
            self._transport.close()

    def _finish(self, status: int, body: bytes = b"") -> None:
        on_answer, self._on_answer = self._on_answer, None
        self._body.clear()
        if on_answer is not None:
            on_answer(status, body)

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stores the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass

    def data_received(self, data: bytes) -> None:
        """Parses a part of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._finish(FAILED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the request that awaits its answer."""
        self._transport = None
        self._finish(FAILED)

    # Called by the parser

    def on_body(self, body: bytes) -> None:
        """Stores a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Ends the request."""
        if not self._parser.should_keep_alive():
            self.close()
        self._finish(self._parser.get_status_code(), b"".join(self._body))


async def connect(
    host: str, port: int, secure: bool = False, local_host: str | None = None
) -> Connection:
    """Opens a connection.

    Args:
        host: Name or address of the server.
        port: TCP port.
        secure: Use TLS.
        local_host: Address of this machine to connect from. None: the system chooses.

    Raises:
        OSError: The server does not accept it.
    """
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection,
        host,
        port,
        ssl=secure or None,
        local_addr=(local_host, 0) if local_host else None,
    )
    return connection


async def connect_to(url: urllib.parse.SplitResult) -> Connection:
    """Opens a connection to the server of an http or https URL. Raises OSError."""
    secure = url.scheme == "https"
    return await connect(url.hostname or "", url.port or (443 if secure else 80), secure)
