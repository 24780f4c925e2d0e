"""One HTTP/1.1 connection that asks one thing at a time, as cheaply as Python can.

No future and no task a request: whoever asks hands over a function that is called once, with the
status and the body, or with FAILED or TIMED_OUT and nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

FAILED, TIMED_OUT = 0, -1
"""In place of a status: the connection was refused, reset or closed; no answer in time."""

OnAnswer = Callable[[int, bytes], None]


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.asked_at = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._on_answer: OnAnswer | None = None
        self._body: list[bytes] = []

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def busy(self) -> bool:
        return self._on_answer is not None

    def ask(self, request: bytes, on_answer: OnAnswer) -> None:
        """Send `request`. Not while another is under way."""
        assert self._transport is not None and self._on_answer is None
        self._on_answer = on_answer
        self.asked_at = time.monotonic()
        self._transport.write(request)

    def give_up(self) -> None:
        """Cut the connection; whoever waits is told TIMED_OUT."""
        if self._transport is not None:
            self._transport.abort()
        self._end(TIMED_OUT)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end(self, status: int) -> None:
        on_answer, self._on_answer = self._on_answer, None
        body, self._body = b"".join(self._body), []
        if on_answer is not None:
            on_answer(status, body)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not a subclass

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
            self._end(FAILED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(FAILED)

    # the parser's side

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._end(self._parser.get_status_code())
