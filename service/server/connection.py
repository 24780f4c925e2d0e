"""One HTTP/1.1 connection: uvicorn's protocol with limits on time, memory and work.

Uvicorn waits without a limit for the first byte of a request, for the rest of its head, and for a
client that does not read. It accepts heads of any length, and parses any number of pipelined
requests before it answers the first. This class guarantees:

- **One request at a time.** While a request is not answered, bytes that follow it are not parsed
  and reading is paused. They are parsed in order after the answer was written to the transport.
  Reading is also paused while the client does not read its answers, and while the application has
  more than 64 KiB of a body to receive.
- **Limited work.** Bytes are parsed in pieces, each of which contains the end of at most one head.
  In one turn of the event loop, a connection starts at most one request and parses at most `TURN`
  pieces and chunks, plus those of one more piece.
- **Limited memory.** A connection holds at most
  - one head of `HEAD_BYTES` and `HEAD_FIELDS`, whose path the application gets twice;
  - `HIGH_WATER_LIMIT` (64 KiB) + `READ_BYTES` of a body that the application has not received;
  - `READ_BYTES` that are not parsed;
  - `UNREAD_BYTES`, and two messages of an answer that the client has not read.

  The memory of a request is released when the request is answered, and that of its body when the
  client stops reading the answer. Body bytes that arrive after the answer has begun are dropped.
- **Independent deadlines.**
  - The first byte of a request must arrive within the keep-alive time.
  - A head must be complete within `HEAD_SECONDS` of its first byte.
  - A request that is answered before its end, or rejected, must end within `REST_SECONDS`.
  - A client must read its answers within `READ_SECONDS` after their buffer is full, and within the
    same time after the connection is closed.

  A connection that misses a deadline is aborted, because closing would wait for the client to read.
- **Fair use of connections.** A connection can be closed to make room for a new one. One with a
  complete request whose answer has not begun is closed only if its client has the most connections
  (`connection_limit`). A request that is interrupted gets 503 if its answer has not begun.
- **Limited framing.** The framing of a body (chunk sizes, chunk extensions, trailers) has the same
  limits as a head. Trailers are ignored.

Malformed requests get 400 with a problem document. So do CONNECT, and requests that do not have
exactly one Host (RFC 9112, section 3.2). An offer to upgrade is ignored (RFC 9110, section 7.8):
the parser would drop the body of a request with such an offer, which Java's client makes for h2c.

The route limits the time of a body. The head and body of an answer are written in one system call,
where uvicorn uses two.

The scope of a request has a `RequestContext`, which tells the application whether the body is
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
"""Seconds in which a head must be complete."""
HEAD_BYTES = 64 * 1024
"""Maximum number of bytes of a head."""
HEAD_FIELDS = 128
"""Maximum number of headers, and of trailers. The message of `problems.HEAD_TOO_LARGE` states both
limits."""
REST_SECONDS = 2.0
"""Seconds in which a request must end that is answered before its end."""
PIECE_BYTES = 4096
"""Maximum number of bytes of a piece that is not part of a body of known length."""
TURN = 1000
"""Number of pieces and chunks after which parsing continues in the next turn of the event loop."""
FRAME = 16
"""Bytes of framing allowed per byte of a body: `1;\\r\\n`, the byte, `\\r\\n`, and a margin."""
UNREAD_BYTES = 16 * 1024
"""Number of bytes that a client has not read, above which the application stops writing."""
HEAD_END = b"\r\n\r\n"
"""The end of every head and every chunked body."""
_RELEASED = RequestContext()
"""Replaces the context of a request that was answered."""


class Connection(HttpToolsProtocol):
    """A connection of uvicorn, with the limits above."""

    server_state: Connections
    _in_head = False
    _frame_bytes = 0
    """Number of bytes so far of the head, or of the body's framing."""
    _body_left = 0
    """Number of bytes of a body of known length that are not parsed yet."""
    _single_bytes = 0
    """Number of bytes to parse one by one, because they may be the rest of a `HEAD_END`."""
    _unparsed = b""
    """Bytes that were received and are not parsed yet."""
    _new_bytes = 0
    """Number of bytes received since the last progress."""
    _work = 0
    """Number of pieces and chunks parsed in this turn of the event loop."""
    _reading = True
    _next_turn: asyncio.Handle | None = None
    """Continues parsing in the next turn of the event loop."""
    _discarding = False
    """Whether received data is dropped, because the connection closes."""

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
        """Close in favor of a new connection. The client gets 503 if it has begun a request whose
        answer has not begun."""
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
        self.flow = self.cycle = None  # type: ignore[assignment]  # break the cycles

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
        """Parse `data` as far as allowed now. Keep the rest, and pause reading meanwhile."""
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
            self._update_reading()
        if self._in_head and not self._head.running:  # rare: most heads arrive at once
            self._head.start(HEAD_SECONDS)

    def _blocked(self) -> bool:
        """Whether parsing must wait until a request is answered, or a body or an answer is read."""
        flow = self.flow
        if flow.read_paused or flow.write_paused:
            return True
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def _piece(self, data: bytes, at: int) -> int:
        """Number of bytes to parse next: up to the end of the next `HEAD_END`, if there is one."""
        if self._single_bytes:
            self._single_bytes -= 1
            if data[at] in HEAD_END:
                return 1
            self._single_bytes = 0
        end = data.find(HEAD_END, at, at + PIECE_BYTES)
        if end >= 0:
            return end + len(HEAD_END) - at
        piece = min(len(data) - at, PIECE_BYTES)
        if data[at + piece - 1] in HEAD_END:  # the rest of it may follow
            self._single_bytes = len(HEAD_END) - 1
        return piece

    def _feed(self, piece: bytes) -> bool:
        """Parse a piece that is not part of a body of known length. Returns whether to continue."""
        self._frame_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:  # a head ends at the end of the piece
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
        """Called by `flow` when more than 64 KiB of a body wait for the application."""
        self._update_reading()

    def resume_reading(self) -> None:
        """Called by `flow` when the application has received them, or the body is complete."""
        if self._unparsed:
            self._parse_soon()
        else:
            self._update_reading()

    def _update_reading(self) -> None:
        """Pause or resume reading, depending on the state."""
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
            raise ValueError("head too large")  # the parser turns it into its own error
        self._in_head, self._frame_bytes = False, 0
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            raise ValueError("no Host header, or more than one")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT is not supported")
            return  # `_begin_without_upgrade` starts it
        if b"content-length" in names:  # the parser accepts one only, and it is a number
            self._body_left = int(self.headers[names.index(b"content-length")][1])
        self._head.stop()
        super().on_headers_complete()
        self.url = b""
        self.headers = []  # trailers are appended

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
        """Release the memory of the request that was answered."""
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
        if self.cycle.response_complete:  # it was answered before its end
            self._rest.stop()
            self._wait_for_request()

    def _wait_for_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
        self._mark_waiting()

    def _mark_waiting(self) -> None:
        """The server waits for the client."""
        if self in self.connections:  # not when it has been replaced already
            self.server_state.waiting[self] = None

    def _mark_progress(self) -> None:
        """If the connection is waiting, it is now the last one to be replaced."""
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
        """Parse the head again, without its offer to upgrade. Returns whether to continue."""
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return self._feed(b"\r\n".join(head) + HEAD_END)

    def _reject(self, problem: problems.Problem) -> None:
        """Answer data that is not a valid request, and close the connection."""
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
            self._close()  # in the middle of an answer, this is the only way to tell the client

    def _close_after_rest(self) -> None:
        """Close after the client has stopped sending. Closing immediately would reset the
        connection, and the client would not see the answer (RFC 9112, section 9.6)."""
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
