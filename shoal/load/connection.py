"""An HTTP/1.1 connection that sends one request at a time and uses little CPU time.

`Connection.send` creates no future and no task. The method calls the function `on_answer` once,
with the status and the body of the response, or with FAILED or TIMED_OUT and an empty body.
`Connection.request` is a coroutine with the same result. Callers pass complete HTTP requests as
bytes.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from typing import cast

import httptools

FAILED, TIMED_OUT = 0, -1
"""Used in place of an HTTP status. FAILED: the connection was refused, reset or closed. TIMED_OUT:
no response arrived in time."""

OnAnswer = Callable[[int, bytes], None]


class Connection(asyncio.Protocol):
    """An HTTP connection, opened with `connect`."""

    def __init__(self) -> None:
        """Creates the protocol object. Only `connect` calls this constructor."""
        self.sent_at = 0.0
        """Time when the last request was sent, from `time.monotonic`."""
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
        """Whether a request is in flight, that is, its response is not complete."""
        return self._on_answer is not None

    def send(self, request: bytes, on_answer: OnAnswer) -> None:
        """Sends a request. The connection must be open and not busy.

        Args:
            request: The complete HTTP request.
            on_answer: Function that is called once, with the status and the body.
        """
        assert self._transport is not None and self._on_answer is None
        self._on_answer = on_answer
        self.sent_at = time.monotonic()
        self._transport.write(request)

    async def request(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Sends a request. Returns the status (or FAILED or TIMED_OUT) and the body.

        Args:
            request: The complete HTTP request.
            seconds: Number of seconds after which the connection is aborted.
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
        """Aborts the connection. A request in flight ends with TIMED_OUT."""
        if self._transport is not None:
            self._transport.abort()
        self._finish(TIMED_OUT)

    def close(self) -> None:
        """Closes the connection. A request in flight ends with FAILED."""
        if self._transport is not None:
            self._transport.close()

    def _finish(self, status: int, body: bytes = b"") -> None:
        on_answer, self._on_answer = self._on_answer, None
        self._body.clear()
        if on_answer is not None:
            on_answer(status, body)

    # asyncio calls these methods.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Stores the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass

    def data_received(self, data: bytes) -> None:
        """Parses a part of a response."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._finish(FAILED)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the request in flight, if there is one."""
        self._transport = None
        self._finish(FAILED)

    # The parser calls these methods.

    def on_body(self, body: bytes) -> None:
        """Stores a part of the response's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Ends the request, because its response is complete."""
        if not self._parser.should_keep_alive():
            self.close()
        self._finish(self._parser.get_status_code(), b"".join(self._body))


async def connect(
    host: str, port: int, secure: bool = False, local_host: str | None = None
) -> Connection:
    """Opens a connection.

    Args:
        host: Host name or IP address of the server.
        port: TCP port of the server.
        secure: Whether to use TLS. Default: False.
        local_host: IP address of this machine to connect from. None: the system chooses.

    Raises:
        OSError: The server does not accept the connection.
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
