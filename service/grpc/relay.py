"""Relays the frames of one gRPC client to gRPC's server, within limits.

gRPC's server alone does not protect itself from hostile clients. It buffers whole messages and does
not report how many bytes have arrived. When the limit of connections is reached, gRPC's server
rejects new connections and does not close idle connections. Therefore, clients connect to the
`listener`, which creates a relay for each connection. The relay checks the client's frames
(`frame_filter`), and passes these frames on to gRPC's server over a local socket.

Guarantees
- There are at most SHOAL_MAX_CONNECTIONS connections. At the limit, a new connection replaces
  another connection (`connection_limit`). A connection is not replaced while one of its complete
  messages is being processed.
- The connection preface, the first bytes of a connection, must arrive within `HEAD_SECONDS`.
- If a client uses up its credit for frames without message data (`frame_credit`), the relay reads
  more slowly. A client that still has too little credit after `FLOOD_SECONDS` is disconnected. The
  delay is needed because normal clients may cancel many calls at the same time.
- A client that does not read its responses for `READ_SECONDS` is disconnected.
- A relay buffers at most 168 KiB: 48 KiB of data that is not relayed yet, 8 KiB of an incomplete
  header block, 64 KiB on the way to gRPC's server, and 48 KiB on the way to the client. Messages
  that were relayed count toward the upload memory (`streams`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from service.grpc.connection_streams import ConnectionStreams
from service.grpc.frame_credit import FRAMES_PER_SECOND, FrameCredit, FrameLimiter
from service.grpc.frame_filter import FrameFilter
from service.grpc.http2_frames import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    BadFrame,
    FrameHeads,
    frame,
    goaway,
)
from service.grpc.server_connection import ServerConnection
from service.grpc.streams import Streams
from service.grpc.timers import Timers
from service.rate_limit import network
from service.server.connection import HEAD_SECONDS
from service.server.connection_limit import Connections
from service.server.transport import READ_SECONDS

FLOOD_SECONDS = 30.0
"""Seconds after which a client without enough credit is disconnected."""
BUFFERED = 16_384
"""If the write buffer to one side exceeds this number of bytes, the relay stops reading from the
other side."""
_INBOX = memoryview(bytearray(32_768))
"""Buffer for reading, which all connections share."""


class Relay(asyncio.BufferedProtocol):
    """The connection of one client, and the matching connection to gRPC's server."""

    def __init__(
        self,
        connections: Connections,
        streams: Streams,
        path: str,
        frame_limiter: FrameLimiter,
    ) -> None:
        """
        Args:
            connections: Limits the number of connections.
            streams: The streams of all connections.
            path: Path of the Unix socket on which gRPC's server listens.
            frame_limiter: Limits the frames without message data of each client network.
        """
        self._connections = connections
        self._all_streams = streams
        self._path = path
        self._frame_limiter = frame_limiter
        self._loop = asyncio.get_running_loop()
        self._timers = Timers()
        self._incoming = bytearray()
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._responses = FrameHeads()
        self._pauses = set[str]()
        """The reasons why the relay does not read from the client now."""
        self._waits_to_start = False
        """Whether the next call must wait until other calls have begun."""

    # Callbacks of the client's transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(BUFFERED)
        peer = transport.get_extra_info("peername")
        client = str(peer[0]) if peer else ""
        self._credit = FrameCredit(self._frame_limiter, client)
        self._streams = ConnectionStreams(self, client, self._all_streams, self._timers)
        self._filter = FrameFilter(self._streams, self._timers, self.abort)
        self.network = network(client)
        if not self._connections.admit(self):
            transport.write(frame(SETTINGS, 0, 0))
            self.disconnect("too many connections, and all of them are busy. Try again in a second")
            return
        self._timers.start("preface", HEAD_SECONDS, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.remove(self)
        self._credit.stop_waiting(self._read_again)
        self._all_streams.start_limit.stop_waiting(self.network, self._start_calls)
        self._timers.cancel_all()
        self._streams.close_all()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._server is not None:
            self._server.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _INBOX

    def buffer_updated(self, count: int) -> None:
        self._incoming += _INBOX[:count]
        if self._server is not None:
            self._relay()
        elif not PREFACE.startswith(self._incoming[: len(PREFACE)]):
            self._close_within(READ_SECONDS)
        elif len(self._incoming) >= len(PREFACE) and self._connecting is None:
            self._timers.cancel("preface")
            self.pause("connecting")
            self._connecting = self._loop.create_task(self._connect())

    def pause_writing(self) -> None:
        self._timers.start("reading", READ_SECONDS, self.abort)
        if self._server is not None:
            self._server.pause_reading()

    def resume_writing(self) -> None:
        self._timers.cancel("reading")
        if self._server is not None:
            self._server.resume_reading()

    # Closing, and the state of the connection.

    def make_room(self) -> None:
        """Close the connection, because a new connection replaces it."""
        self.disconnect(
            "too many connections: a new connection replaces this connection. Try again later"
        )

    def disconnect(self, reason: str) -> None:
        """Send a GOAWAY frame with the reason, and close the connection.

        A client that does not read its responses is disconnected immediately. The GOAWAY frame is
        not sent if it would interrupt another frame.
        """
        if self._responses.at_frame_boundary:
            self._transport.write(goaway(reason))
        self._close_within(0 if self._transport.get_write_buffer_size() else READ_SECONDS)

    def abort(self) -> None:
        """Close the connection immediately."""
        self._transport.abort()

    def set_busy(self, busy: bool) -> None:
        """Record whether a complete message of the connection is being processed."""
        if busy:
            self._connections.waiting.pop(self, None)
        elif self in self._connections.connections:
            self._connections.waiting[self] = None

    def _close_within(self, seconds: float) -> None:
        self._transport.close()
        self._timers.start("closing", seconds, self.abort)

    def pause(self, reason: str) -> None:
        """Stop reading from the client until `resume` is called with the same `reason`."""
        if not self._pauses:
            self._transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """Read from the client again, unless there is another reason to pause."""
        self._pauses.discard(reason)
        if not self._pauses and not self._transport.is_closing():
            self._transport.resume_reading()

    # From the client to gRPC's server.

    async def _connect(self) -> None:
        try:
            await self._loop.create_unix_connection(partial(ServerConnection, self), self._path)
        except OSError:
            self.disconnect("the server accepts no more connections now. Try again in a second")

    def server_connected(self, server: asyncio.Transport) -> None:
        """Begin to relay, since the connection to gRPC's server is open."""
        if self._transport.is_closing():
            server.abort()
            return
        self._server = server
        server.set_write_buffer_limits(BUFFERED)
        server.write(PREFACE)
        del self._incoming[: len(PREFACE)]
        self._relay()
        self.resume("connecting")

    def _relay(self) -> None:
        """Relay the complete frames that have arrived, within the limits of the client."""
        if self._server is None or self._transport.is_closing():
            return
        if self._waits_to_start:
            self._pause_if_much_waits()
            return
        now = self._loop.time()
        credit = self._credit.available(now)
        if credit >= FRAMES_PER_SECOND:
            self._timers.cancel("flood")
        self._filter.credit = credit
        try:
            frames = self._filter.take(self._incoming)
        except BadFrame as error:
            self.disconnect(str(error))
            return
        finally:
            self._credit.spend(credit - self._filter.credit, now)
        self._server.writelines(frames)
        if self._filter.waits_to_start:
            self._waits_to_start = True
            self._all_streams.start_limit.wait(self.network, self._start_calls)
            self._pause_if_much_waits()
        if self._filter.credit <= 0:
            self.pause("credit")
            self._credit.wait(self._read_again)
            if "flood" not in self._timers:
                self._timers.start("flood", FLOOD_SECONDS, self._end_flood)

    def _read_again(self) -> None:
        self._relay()
        if self._filter.credit > 0:
            self.resume("credit")

    def _pause_if_much_waits(self) -> None:
        """Stop reading if much data waits behind a call. Otherwise, the relay reads on to notice
        when the client disconnects."""
        if len(self._incoming) > BUFFERED:
            self.pause("start")

    def _start_calls(self) -> None:
        self._waits_to_start = False
        self.resume("start")
        self._relay()

    def _end_flood(self) -> None:
        if self._credit.available(self._loop.time()) < FRAMES_PER_SECOND:
            self.disconnect("too many frames that carry no message")

    # From gRPC's server to the client.

    def relay_response(self, data: bytes) -> None:
        """Relay bytes from gRPC's server to the client. Closes streams that end in these bytes."""
        self._transport.write(data)
        for kind, flags, number in self._responses.feed(data):
            ended = kind in (HEADERS, DATA) and flags & END_STREAM
            if ended or kind == RST_STREAM:
                if ended and (stream := self._streams.get(number)) and stream.taken:
                    self._credit.add_for_response(stream.received)
                self._streams.end(number)

    def server_lost(self) -> None:
        """Disconnect the client, since the connection to gRPC's server is closed."""
        self._server = None
        if not self._transport.is_closing():
            self._close_within(READ_SECONDS)
