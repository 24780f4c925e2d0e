"""A client's connection: uvicorn's, with bounds on what a client may do to it.

uvicorn waits for ever for a first byte, for the rest of a head and for a client that does not
read, takes heads of any length, and reads on as long as anybody sends after a request was refused
before its end. Here
- a head must be complete within `HEAD_SECONDS` of its first byte and `HEAD_BYTES`;
- a connection on which nothing arrives is closed after the keep-alive time, also the first time;
- what surrounds a body (sizes and extensions of its chunks, trailers) has `HEAD_BYTES`, too, and
  trailers are passed over;
- a request that was answered before its end may go on for `REST_SECONDS`, so that its client has
  a chance to read the answer, and is then cut off;
- a client that takes nothing of its answer for `READ_SECONDS` is cut off;
- there are only so many connections, and `connections` says which makes room for another.

How long a body may take is the route's to say. Bad requests get their 400 as a problem, too, also
those without a Host or with several (RFC 9112, section 3.2). An offer to upgrade is passed over
(RFC 9110, section 7.8): the parser would drop the body of a request that makes one, as Java's own
client does with h2c.

And an answer is written in one go, where uvicorn writes its head and its body apart.

An application is told in its scope what it need not wait for or watch then: that the body is all
there (`upload.WHOLE`) and, when it happens, that the client leaves (`departure.DEPARTURE`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service import errors
from service.connections import Connections
from service.departure import DEPARTURE, Departure
from service.upload import WHOLE

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
REST_SECONDS = 2.0
READ_SECONDS = 30.0
FRAME = 16
"""Bytes around a byte of a body that are fair: `1;\\r\\n`, the byte, `\\r\\n`, and some."""
GATHERED_BYTES = 64 * 1024


class Outgoing(asyncio.Transport):
    """A transport that gathers what is written within a turn of the event loop, up to
    `GATHERED_BYTES`: every write is a system call. `flush` sends it sooner."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._bytes = 0
        # What uvicorn asks of a transport beside writing and leaving.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes > GATHERED_BYTES:  # a client that does not read must be felt
            self.flush()

    def flush(self) -> None:
        if self._gathered and not self._transport.is_closing():
            self._transport.writelines(self._gathered)
        self._gathered.clear()
        self._bytes = 0

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


class Connection(HttpToolsProtocol):
    server_state: Connections
    _timer: asyncio.TimerHandle | None = None
    _frame_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        admitted = self.server_state.admit()
        self._outgoing = Outgoing(transport)
        self._departure = Departure()
        super().connection_made(self._outgoing)
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
        self._departure.happens()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._frame_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._begin_without_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse(errors.BAD_REQUEST)
        if self.transport.is_closing():
            return
        if self._frame_bytes > HEAD_BYTES:
            self._refuse(errors.HEAD_TOO_LARGE)
        elif self._in_head and self._timer is None:  # most heads are whole by now
            self._within(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[DEPARTURE] = self._departure  # type: ignore[literal-required]
        self._in_head = True
        self._at_ease()

    def on_headers_complete(self) -> None:
        self._in_head, self._frame_bytes = False, 0
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise ValueError("not one Host")  # the parser makes it one of its own errors
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return  # it begins again, as soon as the parser has said so
        self._at_ease()
        self.server_state.goes_on(self)
        super().on_headers_complete()
        self.headers = []  # where trailers go

    def on_body(self, body: bytes) -> None:
        self._frame_bytes = max(0, self._frame_bytes - (1 + FRAME) * len(body))
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._outgoing.flush()
        super().on_response_complete()
        if self.cycle.response_complete:
            if self.cycle.more_body:
                self._within(REST_SECONDS, self.timeout_keep_alive_handler)
            else:
                self.server_state.waits(self)

    def on_message_complete(self) -> None:
        self._frame_bytes = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self.scope[WHOLE] = True  # type: ignore[literal-required]
        if not self.pipeline:
            self.flow.resume_reading()  # a large body paused it: its sender may yet leave
        if self.cycle.response_complete:  # the rest has come
            self._within(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.server_state.waits(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._within(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._at_ease()

    def _begin_without_upgrade(self, rest: bytes) -> None:
        """The request whose head has just been read, as if it had not offered to upgrade."""
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's is
        self.data_received(b"\r\n".join([*head, b"", b""]) + rest)

    def _refuse(self, problem: errors.Problem) -> None:
        """Answer what never became a request, and hang up."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # another answer is under way
            return
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
