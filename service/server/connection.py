"""One HTTP/1.1 connection: uvicorn's protocol, with bounds on time, memory and work.

uvicorn waits without a limit for the first byte of a request, for the rest of its head and for a
client that does not read. It accepts heads of any length, and parses any number of pipelined
requests ahead of the answers. Here

- **One request at a time.** Bytes that arrive behind a request that is not answered yet stay
  unparsed, and reading stops. They are parsed in order after the answer was written to the
  transport, so none is lost. Reading also stops while the client does not read its answers, and
  while the application has more than 64 KiB of a body to receive.
- **Bounded work.** Bytes are parsed in pieces, each of which contains the end of at most one head.
  In one turn of the event loop a connection starts at most one request, and parses at most `TURN`
  pieces and chunks, and those of one piece more.
- **Bounded memory.** A connection holds at most
  - one head of `HEAD_BYTES` and `HEAD_FIELDS`, of which the application gets the path twice;
  - `HIGH_WATER_LIMIT` (64 KiB) + `READ_BYTES` of a body that the application has not taken;
  - `READ_BYTES` that are not parsed;
  - `UNREAD_BYTES`, and two messages of an answer that the client has not read.

  What belongs to a request is released when the request is answered, and of its body when the
  client stops reading the answer. Bytes of a body that arrive after the answer has begun are not
  kept.
- **One deadline for each purpose.** They are independent:
  - the first byte of a request must arrive within the keep-alive time;
  - a head must be complete within `HEAD_SECONDS` of its first byte;
  - a request that is answered before its end, or rejected, must end within `REST_SECONDS`;
  - a client must read its answers within `READ_SECONDS` after their buffer is full, and within the
    same time after the connection is closed.

  A connection that misses a deadline is aborted: closing would wait for the client to read.
- **Room for others.** Connections that wait make room for new ones (`connection_limit`): those
  without a complete request, and those whose answer has begun. So one that waits for the rest of a
  head or a body does not keep its place, nor does one whose answer takes the client time to read.
  A client that has most of the connections also loses those with a complete request. A request
  that is interrupted this way gets 503.
- The framing of a body (chunk sizes, chunk extensions, trailers) has the bounds of a head.
  Trailers are ignored.

Malformed requests get their 400 as a problem document, including CONNECT and requests without
exactly one Host (RFC 9112, section 3.2). An offer to upgrade is ignored (RFC 9110, section 7.8):
the parser would drop the body of a request that makes one, as Java's own client does with h2c.

The route limits the time of a body. An answer is written in one system call, where uvicorn writes
its head and its body separately.

The scope has a `RequestContext`, which tells the application whether the body is complete, and when
the client disconnects.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.http import problems
from service.http.context import CONTEXT, RequestContext
from service.http.disconnect import Disconnect
from service.rate_limit import network
from service.server.connection_limit import PROGRESS_BYTES, Connections

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
HEAD_FIELDS = 128
"""Maximum number of headers, and of trailers: each costs more memory than its bytes.
`problems.HEAD_TOO_LARGE` states this and `HEAD_BYTES`."""
REST_SECONDS = 2.0
READ_SECONDS = 30.0
READ_BYTES = 64 * 1024
"""Maximum number of bytes that are read at once."""
PIECE_BYTES = 4096
"""Maximum size of a piece that is not of a body of known length."""
TURN = 1000
"""Number of pieces and chunks after which parsing continues in the next turn of the event loop."""
FRAME = 16
"""Bytes of framing allowed per byte of a body: `1;\\r\\n`, the byte, `\\r\\n`, and a margin."""
GATHERED_BYTES = 64 * 1024
UNREAD_BYTES = 16 * 1024
"""Bytes that a client has not read, above which the application stops writing."""
HEAD_END = b"\r\n\r\n"
"""The end of every head and every chunked body."""


class Incoming(asyncio.BufferedProtocol):
    """Passes at most `READ_BYTES` at a time to a connection. uvloop reads 250 KiB at once."""

    _buffer = memoryview(bytearray(READ_BYTES))  # shared by all connections: used within one turn

    def __init__(self, connection: Connection) -> None:
        self.connection_made = connection.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]
        self._received = connection.data_received

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received(bytes(self._buffer[:nbytes]))


_RELEASED = RequestContext()
"""In the place of the context of a request that has been answered."""


class Outgoing(asyncio.Transport):
    """A transport that gathers what is written within a turn of the event loop, up to
    `GATHERED_BYTES`: every write is a system call. `flush` sends it sooner."""

    def __init__(
        self, transport: asyncio.Transport, sent: Callable[[], None] = lambda: None
    ) -> None:
        """`sent` is called when part of an answer was sent before the answer is complete."""
        super().__init__()
        self._transport = transport
        self._sent = sent
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes | bytearray | memoryview] = []
        self._bytes = 0
        self._ended = False
        self._closed = Deadline(self._loop, transport.abort)
        # The other methods of a transport that uvicorn uses.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.get_extra_info = transport.get_extra_info  # type: ignore[method-assign]
        self.pause_reading = transport.pause_reading  # type: ignore[method-assign]
        self.resume_reading = transport.resume_reading  # type: ignore[method-assign]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop.call_soon(self._send)
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes > GATHERED_BYTES:  # or flow control would not notice a slow client
            self._send()

    def _send(self) -> None:
        if self._gathered:
            self.flush()
            self._sent()

    def flush(self) -> None:
        if self._gathered and not (self._ended or self._transport.is_closing()):
            self._transport.writelines(self._gathered)
        self._gathered.clear()
        self._bytes = 0

    def close(self) -> None:
        """Close when everything is sent; abort where the client does not read it in time."""
        self.flush()
        if not self._transport.is_closing():
            self._transport.close()
            self._closed.start(READ_SECONDS)

    def write_eof(self) -> None:
        """Tell the client that nothing follows. Data that is written afterwards is dropped."""
        self.flush()
        self._ended = True
        self._transport.write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def lost(self) -> None:
        """The connection has ended."""
        self._closed.stop()
        self._sent = lambda: None  # it refers to the connection, which refers to this


class Deadline:
    """A timer that calls `missed` unless it is stopped in time. Each has one purpose."""

    __slots__ = ("_loop", "_missed", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, missed: Callable[[], None]) -> None:
        self._loop, self._missed = loop, missed
        self._timer: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._timer is not None

    def start(self, seconds: float) -> None:
        """Start, or start anew, with `seconds` from now."""
        self.stop()
        self._timer = self._loop.call_later(seconds, self._missed)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(HttpToolsProtocol):
    server_state: Connections
    _in_head = False
    _frame_bytes = 0
    """Bytes so far of the head, or of the body's framing."""
    _body_left = 0
    """Bytes of a body of known length that are not parsed yet."""
    _singly = 0
    """Number of next bytes that are parsed one by one: they may be the rest of a `HEAD_END`."""
    _unparsed = b""
    _news = 0
    """Bytes received since the last progress."""
    _work = 0
    """Number of pieces and chunks parsed in this turn of the event loop."""
    _reading = True
    _turn: asyncio.Handle | None = None
    _discarding = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        self.network = network(str(peer[0])) if peer else ""
        admitted = self.server_state.admit(self)
        self._outgoing = Outgoing(transport, self._awaits_reading)
        self._disconnect = Disconnect()
        self._head = Deadline(self.loop, transport.abort)
        self._rest = Deadline(self.loop, transport.abort)
        self._read = Deadline(self.loop, transport.abort)
        transport.set_write_buffer_limits(UNREAD_BYTES)
        super().connection_made(self._outgoing)
        self.flow = FlowControl(self)  # type: ignore[arg-type]  # asks only to pause and resume
        self.headers = []
        if not admitted:
            self._refuse(problems.TOO_MANY_CONNECTIONS)
            return
        self._awaits_request()

    def make_room(self) -> None:
        """Close now, after a 503 where a request has begun and no part of its answer was sent."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        is_asked = self._in_head or (cycle is not None and not cycle.response_started)
        if not is_asked or self._read.running:
            self._outgoing.flush()
            self.transport.abort()
            return
        self._refuse(problems.TOO_MANY_CONNECTIONS)
        self._rest.start(REST_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in self._head, self._rest, self._read:
            deadline.stop()
        self._unset_keepalive_if_required()
        self.server_state.remove(self)
        self._disconnect.notify()
        super().connection_lost(exc)
        self._outgoing.lost()
        self._unparsed = b""
        self.flow = self.cycle = None  # type: ignore[assignment]  # they refer to this connection

    def eof_received(self) -> None:
        self._close()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._news += len(data)
        if self._news >= PROGRESS_BYTES:
            self._news = 0
            self._progresses()
        self._parse(self._unparsed + data if self._unparsed else data)

    def _parse(self, data: bytes) -> None:
        """Parse `data` as far as allowed now. Keep the rest, and do not read until it is parsed."""
        at, self._work = 0, 0
        while at < len(data) and not self._blocked():
            if self._work > TURN:
                self._parse_soon()
                break
            self._work += 1
            if self._body_left:
                end = at + min(self._body_left, READ_BYTES)
                self.parser.feed_data(memoryview(data)[at:end])  # a body cannot be malformed
            else:
                end = at + self._piece(data, at)
                if not self._feed(data[at:end]):
                    self._unparsed = b""
                    return
            at = end
        self._unparsed = data[at:]
        if self._unparsed or not self._reading:
            self._steer()
        if self._in_head and not self._head.running:  # most heads are complete by now
            self._head.start(HEAD_SECONDS)

    def _blocked(self) -> bool:
        """Whether parsing must wait for an answer, or for a body or an answer to be read."""
        flow = self.flow
        if flow.read_paused or flow.write_paused:
            return True
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _piece(self, data: bytes, at: int) -> int:
        """Number of bytes to parse next: to the end of the next `HEAD_END`, if there is one."""
        if self._singly:
            self._singly -= 1
            if data[at] in HEAD_END:
                return 1
            self._singly = 0
        end = data.find(HEAD_END, at, at + PIECE_BYTES)
        if end >= 0:
            return end + len(HEAD_END) - at
        piece = min(len(data) - at, PIECE_BYTES)
        if data[at + piece - 1] in HEAD_END:  # whose rest may follow
            self._singly = len(HEAD_END) - 1
        return piece

    def _feed(self, piece: bytes) -> bool:
        """Parse a piece that is not of a body of known length. Returns whether to continue."""
        self._frame_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # at the end of the piece, since a head ends there
            return self._begin_without_upgrade()
        except httptools.HttpParserError:
            self._refuse(problems.HEAD_TOO_LARGE if self._too_large() else problems.BAD_REQUEST)
            return False
        if self._too_large():
            self._refuse(problems.HEAD_TOO_LARGE)
            return False
        return True

    def _too_large(self) -> bool:
        return self._frame_bytes > HEAD_BYTES or len(self.headers) > HEAD_FIELDS

    def _parse_soon(self) -> None:
        """Parse in the next turn of the event loop, after other connections."""
        if self._turn is None:
            self._turn = self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        self._turn = None
        if self._unparsed and not self.transport.is_closing():
            self._parse(self._unparsed)

    def pause_reading(self) -> None:
        """Called by `flow` when the application has much of the body to receive."""
        self._steer()

    def resume_reading(self) -> None:
        """Called by `flow` when the application has received it, or the body is complete."""
        if self._unparsed:
            self._parse_soon()
        else:
            self._steer()

    def _steer(self) -> None:
        """Resume or pause reading, as the state requires."""
        reading = not self._unparsed and not self.flow.read_paused
        if reading != self._reading:
            self._reading = reading
            (self.transport.resume_reading if reading else self.transport.pause_reading)()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._context = RequestContext(self._disconnect)
        self.scope[CONTEXT] = self._context  # type: ignore[literal-required]
        self._in_head = True
        self._unset_keepalive_if_required()

    def on_headers_complete(self) -> None:
        if self._too_large():
            raise ValueError("head too large")  # the parser turns it into its own error
        self._in_head, self._frame_bytes = False, 0
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise ValueError("not one Host")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("a tunnel")
            return  # `_begin_without_upgrade` starts it
        if b"content-length" in names:  # one, and a number: the parser checks that
            self._body_left = int(self.headers[names.index(b"content-length")][1])
        self._head.stop()
        super().on_headers_complete()
        self.url = b""
        self.headers = []  # trailers are appended

    def on_body(self, body: bytes) -> None:  # a third of the time of uvicorn's own
        if self._body_left:
            self._body_left -= len(body)
        else:
            self._work += 1
            self._frame_bytes = max(0, self._frame_bytes - (1 + FRAME) * len(body))
        cycle = self.cycle
        if not cycle.response_started:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        self._outgoing.flush()
        super().on_response_complete()
        if self.transport.is_closing():
            if self.parser is not None:  # the connection is not lost yet
                self._waits()
            return
        self._release()
        if self.cycle.more_body:
            self._unset_keepalive_if_required()
            self._rest.start(REST_SECONDS)
        self._waits()
        if self._unparsed:
            self._parse(self._unparsed)

    def _release(self) -> None:
        """Release what belongs to the request that has been answered."""
        if self.cycle.body:
            self.cycle.body = bytearray()
        nothing: Any = {}
        self.scope = self.cycle.scope = nothing
        self._context = _RELEASED

    def on_message_complete(self) -> None:
        self._frame_bytes = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._context.body_complete = True
        if not (self.cycle.response_complete or self.flow.write_paused):
            self.server_state.waiting.pop(self, None)
        self.flow.resume_reading()  # paused by a large body; a disconnect must be noticed
        if self.cycle.response_complete:  # it was answered before its end
            self._rest.stop()
            self._awaits_request()

    def _awaits_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        self._waits()

    def _awaits_reading(self) -> None:
        self._waits()
        self._progresses()

    def _waits(self) -> None:
        """The server waits for the client from now on, if not before."""
        if self in self.connections:  # otherwise it makes room, and has not ended yet
            self.server_state.waiting[self] = None

    def _progresses(self) -> None:
        """If it waits, it is the last that makes room."""
        if self in self.server_state.waiting:
            self.server_state.waiting.move_to_end(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read.start(READ_SECONDS)
        self._waits()
        if self.cycle is not None and self.cycle.response_started:  # type: ignore[redundant-expr]
            self.cycle.body = bytearray()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read.stop()
        self._progresses()
        if self._unparsed:
            self._parse_soon()

    def _begin_without_upgrade(self) -> bool:
        """Parse the head again without its offer to upgrade."""
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's is
        return self._feed(b"\r\n".join(head) + HEAD_END)

    def _refuse(self, problem: problems.Problem) -> None:
        """Answer data that did not become a request, and close the connection."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None or not cycle.response_started or cycle.response_complete:
            response = problems.answer(problem, None, os.urandom(16).hex())
            head = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
            self.transport.write(
                b"".join([STATUS_LINE[problem.status], *head, b"\r\n", bytes(response.body)])
            )
        nothing: Any = {}
        self.url, self.headers, self.scope = b"", [], nothing
        if problem is problems.HEAD_TOO_LARGE:
            self._close_after_rest()
        else:
            self._close()  # within an answer, closing is the only way to tell the client

    def _close_after_rest(self) -> None:
        """Close when the client has stopped sending. Closing at once would reset the connection,
        and the client would not see the answer (RFC 9112, section 9.6)."""
        self._discarding = True
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        self._in_head = False
        self._head.stop()
        self._rest.start(REST_SECONDS)
        self.transport.write_eof()
        self._waits()

    def _close(self) -> None:
        self.transport.close()
        self._waits()
