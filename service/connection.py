"""A client's connection: uvicorn's, with bounds on what a client may do to it.

uvicorn waits for ever for a first byte, for the rest of a head and for a client that does not
read, takes heads of any length, and reads on as long as anybody sends after a request was refused
before its end. Here
- a head must be complete within `HEAD_SECONDS` of its first byte and `HEAD_BYTES`;
- a connection on which nothing arrives is closed after the keep-alive time, also the first time;
- a request that was answered before its end may go on for `REST_SECONDS`, so that its client has
  a chance to read the answer, and is then cut off;
- a client that takes nothing of its answer for `READ_SECONDS` is cut off;
- there are only so many connections, and `connections` says which makes room for another.

How long a body may take is the route's to say. Bad requests get their 400 as a problem, too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service import errors
from service.connections import Connections

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
REST_SECONDS = 2.0
READ_SECONDS = 30.0


class Connection(HttpToolsProtocol):
    server_state: Connections
    _timer: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        admitted = self.server_state.admit()
        super().connection_made(transport)
        if not admitted:
            self._refuse(errors.TOO_MANY_CONNECTIONS)
            return
        self.server_state.waits(self)
        self._within(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def make_room(self) -> None:
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._at_ease()
        self.server_state.goes_on(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(errors.HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._within(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._at_ease()
        self.server_state.goes_on(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            if self.cycle.more_body:
                self._within(REST_SECONDS, self.timeout_keep_alive_handler)
            else:
                self.server_state.waits(self)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:  # the rest has come
            self._within(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.server_state.waits(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._within(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._at_ease()

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.BAD_REQUEST)

    def _refuse(self, problem: errors.Problem) -> None:
        """Answer what never became a request, and hang up."""
        response = errors.answer(problem, None, os.urandom(16).hex())
        head = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(
            b"".join([STATUS_LINE[problem.status], *head, b"\r\n", bytes(response.body)])
        )
        self.transport.close()

    def _within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._at_ease()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _at_ease(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
