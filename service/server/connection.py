"""One HTTP/1.1 connection: uvicorn's protocol with limits on time, memory and work.

The head of a request is its request line and headers. Uvicorn waits without a limit for the first
byte of a head, for the rest of the head, and for a client that does not read. Uvicorn also accepts
heads of any length, and parses any number of pipelined requests before it responds to the first
request. `Connection` guarantees:

- **One request at a time.** Until the response to a request is complete, the bytes after the
  request are not parsed, and reading is paused. Reading is also paused while the client does not
  read its responses, and while more than 64 KiB of a body wait for the application.
- **Limited work.** Bytes are parsed in pieces. A piece contains the end of at most one head. In one
  turn of the event loop, a connection starts at most one request. In this turn, the connection
  parses at most `TURN` pieces and chunks of a body, and then at most one more piece with its
  chunks.
- **Limited memory.** A connection holds at most
  - one head of at most `HEAD_BYTES` and `HEAD_FIELDS` headers, and its path twice (the scope has
    `path` and `raw_path`);
  - `HIGH_WATER_LIMIT` (64 KiB) + `READ_BYTES` of a body that the application has not received;
  - `READ_BYTES` that are not parsed;
  - `UNREAD_BYTES` and two messages of a response that the client has not read.

  The memory of a request is released when its response is complete. The memory of its body is
  released earlier if the client stops reading the response. Body bytes that arrive after the
  response has begun are dropped.
- **Independent deadlines.**
  - The first byte of a request must arrive within the keep-alive time.
  - A head must be complete within `HEAD_SECONDS` after its first byte.
  - If the response to a request is complete before the request has arrived completely, the rest of
    the request must arrive within `REST_SECONDS`.
  - If the response buffer is full, or the connection is being closed, the client must read the
    responses within `READ_SECONDS`.

  A connection that misses a deadline is aborted, because closing would wait for the client to read.
- **Fair use of connections.** At the maximum number of connections, a new connection replaces an
  old connection (`connection_limit`). While a connection has a complete request and the response
  has not begun, the connection is replaced only if its client has the most connections. An
  interrupted request gets 503 if no other response has begun.
- **Limited framing.** The framing of a body (chunk sizes, chunk extensions, trailers) has the same
  limits as a head. Trailers are ignored.

Malformed requests get 400 with a problem document. CONNECT requests, and requests without exactly
one Host header (RFC 9112, section 3.2), also get 400. An offer to upgrade the protocol is ignored
(RFC 9110, section 7.8). Java's client makes such offers (h2c), and without this rule the parser
would drop the bodies of these requests.

The route sets the timeout for the arrival of a body. The head and body of a response are written in
one system call; uvicorn needs two calls.

The scope of a request has a `RequestContext`. The context tells the application whether the body is
complete, and when the client disconnects.
"""

from __future__ import annotations

import asyncio
import os
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
from service.rate_limit import network
from service.server.connection_limit import PROGRESS_BYTES, Connections
from service.server.transport import READ_BYTES, READ_SECONDS, Deadline, Outgoing

HEAD_SECONDS = 10.0
"""Timeout in seconds for a head (request line and headers). The time starts at the first byte."""
HEAD_BYTES = 64 * 1024
"""Maximum number of bytes of a request line and its headers."""
HEAD_FIELDS = 128
"""Maximum number of headers of a request, and maximum number of its trailers. The message of
`problems.HEAD_TOO_LARGE` states `HEAD_BYTES` and `HEAD_FIELDS`."""
REST_SECONDS = 2.0
"""Timeout in seconds for the rest of a request, if the response is complete before the request."""
PIECE_BYTES = 4096
"""Maximum number of bytes of a piece that is not part of a body of known length."""
TURN = 1000
"""Number of pieces and chunks after which parsing pauses until the next turn of the event loop."""
FRAME = 16
"""Maximum number of bytes of framing per byte of a chunked body. A chunk of one byte has `1;\\r\\n`
before the byte and `\\r\\n` after it; the rest is a margin."""
UNREAD_BYTES = 16 * 1024
"""Maximum number of response bytes that wait for the client to read them. Above this number, the
application waits before it writes more bytes."""
HEAD_END = b"\r\n\r\n"
"""Bytes at the end of every head and of every chunked body."""
_RELEASED = RequestContext()
"""Context of a connection while it has no request, or after the response to its request."""


class Connection(HttpToolsProtocol):
    """Uvicorn's connection with the limits that are listed at the top of this module."""

    server_state: Connections
    _in_head = False
    _frame_bytes = 0
    """Number of bytes parsed so far of the current head, or of the framing of the current body."""
    _body_left = 0
    """Number of unparsed bytes of the current body. 0 if the length of the body is unknown."""
    _single_bytes = 0
    """Number of next bytes to parse one at a time, because a `HEAD_END` may end in these bytes."""
    _unparsed = b""
    """Received bytes that are not parsed yet."""
    _new_bytes = 0
    """Number of bytes received since the last multiple of `PROGRESS_BYTES`."""
    _work = 0
    """Number of pieces and chunks parsed in this turn of the event loop."""
    _reading = True
    """Whether the transport is reading."""
    _next_turn: asyncio.Handle | None = None
    """Scheduled call that continues parsing in the next turn of the event loop."""
    _discarding = False
    """Whether the connection drops received data, because it is being closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        self.network = network(str(peer[0])) if peer else ""
        admitted = self.server_state.admit(self)
        self._outgoing = Outgoing(transport, self._wait_for_reader)
        self._context = _RELEASED
        self._head = Deadline(self.loop, transport.abort)
        self._rest = Deadline(self.loop, transport.abort)
        self._read = Deadline(self.loop, transport.abort)
        transport.set_write_buffer_limits(UNREAD_BYTES)
        super().connection_made(self._outgoing)
        self.flow = FlowControl(self)  # type: ignore[arg-type]  # calls pause_ and resume_reading only
        self.headers = []
        if not admitted:
            self._reject(problems.TOO_MANY_CONNECTIONS)
            return
        self._wait_for_request()

    def make_room(self) -> None:
        """Close this connection to make room for a new connection. A request in progress gets 503
        if no other response has begun."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        is_asked = self._in_head or (cycle is not None and not cycle.response_started)
        if not is_asked or self._read.running:
            self._outgoing.flush()
            self.transport.abort()
            return
        self._reject(problems.TOO_MANY_CONNECTIONS)
        self._rest.start(REST_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in self._head, self._rest, self._read:
            deadline.stop()
        self._unset_keepalive_if_required()
        self.server_state.remove(self)
        if self._context is not _RELEASED:
            self._context.disconnect()
        super().connection_lost(exc)
        self._outgoing.lost()
        self._unparsed = b""
        self.flow = self.cycle = None  # type: ignore[assignment]  # break reference cycles

    def eof_received(self) -> None:
        self._close()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._new_bytes += len(data)
        if self._new_bytes >= PROGRESS_BYTES:
            self._new_bytes = 0
            self._mark_progress()
        self._parse(self._unparsed + data if self._unparsed else data)

    def _parse(self, data: bytes) -> None:
        """Parse `data` until a limit is reached. Keep the rest, and pause reading until the rest
        is parsed."""
        at, self._work = 0, 0
        while at < len(data) and not self._blocked():
            if self._work > TURN:
                self._parse_soon()
                break
            self._work += 1
            if self._body_left:
                end = at + min(self._body_left, READ_BYTES)
                self.parser.feed_data(memoryview(data)[at:end])  # cannot be malformed
            else:
                end = at + self._piece(data, at)
                if not self._feed(data[at:end]):
                    self._unparsed = b""
                    return
            at = end
        self._unparsed = data[at:]
        if self._unparsed or not self._reading:
            self._update_reading()
        if self._in_head and not self._head.running:  # rare: most heads arrive at once
            self._head.start(HEAD_SECONDS)

    def _blocked(self) -> bool:
        """Whether parsing must wait: for the response to a request, for the application to receive
        a body, or for the client to read a response."""
        flow = self.flow
        if flow.read_paused or flow.write_paused:
            return True
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _piece(self, data: bytes, at: int) -> int:
        """Return the number of bytes of `data` to parse next, from the offset `at`.

        The piece ends at the end of the next `HEAD_END`, if there is one within `PIECE_BYTES`.
        """
        if self._single_bytes:
            self._single_bytes -= 1
            if data[at] in HEAD_END:
                return 1
            self._single_bytes = 0
        end = data.find(HEAD_END, at, at + PIECE_BYTES)
        if end >= 0:
            return end + len(HEAD_END) - at
        piece = min(len(data) - at, PIECE_BYTES)
        if data[at + piece - 1] in HEAD_END:  # the rest of a `HEAD_END` may follow
            self._single_bytes = len(HEAD_END) - 1
        return piece

    def _feed(self, piece: bytes) -> bool:
        """Parse a piece that is not part of a body of known length.

        Returns whether the connection may parse further pieces.
        """
        self._frame_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # the piece is the end of a head
            return self._begin_without_upgrade()
        except httptools.HttpParserError:
            self._reject(problems.HEAD_TOO_LARGE if self._too_large() else problems.BAD_REQUEST)
            return False
        if self._too_large():
            self._reject(problems.HEAD_TOO_LARGE)
            return False
        return True

    def _too_large(self) -> bool:
        return self._frame_bytes > HEAD_BYTES or len(self.headers) > HEAD_FIELDS

    def _parse_soon(self) -> None:
        """Parse in the next turn of the event loop, after other connections."""
        if self._next_turn is None:
            self._next_turn = self.loop.call_soon(self._parse_rest)

    def _parse_rest(self) -> None:
        self._next_turn = None
        if self._unparsed and not self.transport.is_closing():
            self._parse(self._unparsed)

    def pause_reading(self) -> None:
        """Pause reading. `flow` calls this method when over 64 KiB of a body wait for the
        application."""
        self._update_reading()

    def resume_reading(self) -> None:
        """Resume reading. `flow` calls this method when the application has received the body
        bytes, or when the body is complete."""
        if self._unparsed:
            self._parse_soon()
        else:
            self._update_reading()

    def _update_reading(self) -> None:
        """Pause reading if bytes are unparsed or `flow` is paused. Otherwise resume reading."""
        reading = not self._unparsed and not self.flow.read_paused
        if reading != self._reading:
            self._reading = reading
            (self.transport.resume_reading if reading else self.transport.pause_reading)()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._context = RequestContext()
        self.scope[CONTEXT] = self._context  # type: ignore[literal-required]
        self._in_head = True
        self._unset_keepalive_if_required()

    def on_headers_complete(self) -> None:
        if self._too_large():
            raise ValueError("head too large")  # the parser raises HttpParserError instead
        self._in_head, self._frame_bytes = False, 0
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise ValueError("no Host header, or more than one")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT is not supported")
            return  # `_begin_without_upgrade` starts the request
        if b"content-length" in names:  # the parser accepts one valid number only
            self._body_left = int(self.headers[names.index(b"content-length")][1])
        self._head.stop()
        super().on_headers_complete()
        self.url = b""
        self.headers = []  # the parser appends trailers

    def on_body(self, body: bytes) -> None:  # three times as fast as uvicorn's
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
                self._mark_waiting()
            return
        self._release()
        if self.cycle.more_body:
            self._unset_keepalive_if_required()
            self._rest.start(REST_SECONDS)
        self._mark_waiting()
        if self._unparsed:
            self._parse(self._unparsed)

    def _release(self) -> None:
        """Release the memory of the request after its response."""
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
        self.flow.resume_reading()  # large bodies pause reading, and a disconnect must be noticed
        if self.cycle.response_complete:  # the response was complete before the request
            self._rest.stop()
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        self._mark_waiting()

    def _mark_waiting(self) -> None:
        """Mark the connection as waiting: its client must act next."""
        if self in self.connections:  # a replaced connection is not marked
            self.server_state.waiting[self] = None

    def _mark_progress(self) -> None:
        """If this connection is waiting, make it the last waiting connection to be replaced."""
        if self in self.server_state.waiting:
            self.server_state.waiting.move_to_end(self)

    def _wait_for_reader(self) -> None:
        self._mark_waiting()
        self._mark_progress()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read.start(READ_SECONDS)
        self._mark_waiting()
        if self.cycle is not None and self.cycle.response_started:  # type: ignore[redundant-expr]
            self.cycle.body = bytearray()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read.stop()
        self._mark_progress()
        if self._unparsed:
            self._parse_soon()

    def _begin_without_upgrade(self) -> bool:
        """Parse the head again, without the offer to upgrade the protocol.

        Returns whether the connection may parse further pieces.
        """
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return self._feed(b"\r\n".join(head) + HEAD_END)

    def _reject(self, problem: problems.Problem) -> None:
        """Respond with `problem` if no other response is in progress, and close the connection."""
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
            self._close()  # during a response, closing is the only way to report an error

    def _close_after_rest(self) -> None:
        """Close the connection after the client has stopped sending.

        An immediate close would reset the connection, and the client would lose the response (RFC
        9112, section 9.6).
        """
        self._discarding = True
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()
        self._in_head = False
        self._head.stop()
        self._rest.start(REST_SECONDS)
        self.transport.write_eof()
        self._mark_waiting()

    def _close(self) -> None:
        self.transport.close()
        self._mark_waiting()
