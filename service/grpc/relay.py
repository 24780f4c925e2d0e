"""Relays the frames of one gRPC client to gRPC's server, within limits.

gRPC's server buffers whole messages without telling how much of them has arrived, and at its limit
it rejects new connections rather than close idle ones. So clients connect to the `listener`. It
creates a relay for each connection, which checks the frames (`frame_filter`) and passes them on
over a local socket.

Guarantees
- There are at most SHOAL_MAX_CONNECTIONS connections. A new one replaces another
  (`connection_limit`). A connection waits unless one of its complete messages is being handled.
- The connection preface is complete within `HEAD_SECONDS`.
- A client that sends more frames without a message than its credit (`frame_credit`) is read more
  slowly, and is disconnected if this lasts for `FLOOD_SECONDS`. It is not disconnected immediately,
  because honest clients cancel calls in bursts.
- A client that does not read its responses for `READ_SECONDS` is disconnected.
- Each connection buffers at most 160 KiB here: 48 KiB that are not relayed yet, 64 KiB on the way
  to gRPC's server, and 48 KiB on the way to the client. Relayed messages count as uploads
  (`streams`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from service.grpc.connection_streams import ConnectionStreams
from service.grpc.frame_credit import FRAMES_PER_SECOND, FrameCredit, FrameLimiter
from service.grpc.frame_filter import BadFrame, FrameFilter
from service.grpc.http2_frames import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    FrameHeads,
    frame,
    goaway,
)
from service.grpc.server_connection import ServerConnection
from service.grpc.streams import Streams
from service.grpc.timers import Timers
from service.grpc.turn_limit import TurnLimit
from service.rate_limit import network
from service.server.connection import HEAD_SECONDS
from service.server.connection_limit import Connections
from service.server.transport import READ_SECONDS

FLOOD_SECONDS = 30.0
BUFFERED = 16_384
"""Bytes in the write buffer of one side above which the other side is not read."""
_INBOX = memoryview(bytearray(32_768))
"""Buffer for reading, which all connections share."""


class Relay(asyncio.BufferedProtocol):
    """The connection of a client, and its connection to gRPC's server."""

    def __init__(
        self,
        connections: Connections,
        streams: Streams,
        path: str,
        frame_limiter: FrameLimiter,
        turn: TurnLimit,
    ) -> None:
        """
        Args:
            connections: Limits the number of connections.
            streams: The streams of all connections.
            path: The Unix socket of gRPC's server.
            frame_limiter: Limits the frames of each client network.
            turn: Limits the calls of all connections.
        """
        self._connections = connections
        self._all_streams = streams
        self._path = path
        self._frame_limiter = frame_limiter
        self._turn = turn
        self._loop = asyncio.get_running_loop()
        self._timers = Timers()
        self._incoming = bytearray()
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._responses = FrameHeads()
        self._pauses = set[str]()
        """Reasons why the client is not read now."""

    # Callbacks of the client's transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(BUFFERED)
        peer = transport.get_extra_info("peername")
        client = str(peer[0]) if peer else ""
        self._credit = FrameCredit(self._frame_limiter, client)
        self._streams = ConnectionStreams(self, client, self._all_streams, self._timers)
        self._filter = FrameFilter(self._streams, self._timers, self._turn, self.abort)
        self.network = network(client)
        if not self._connections.admit(self):
            transport.write(frame(SETTINGS, 0, 0))
            self.disconnect("too many connections: all of them are busy. Try again in a second")
            return
        self._timers.start("preface", HEAD_SECONDS, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.remove(self)
        self._credit.stop_waiting(self._read_again)
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
        """Close the connection for a new one."""
        self.disconnect("too many connections: another client takes this place. Try again later")

    def disconnect(self, reason: str) -> None:
        """Close the connection, after a GOAWAY with the reason if the client reads."""
        if self._responses.at_frame_boundary:
            self._transport.write(goaway(reason))
        self._close_within(0 if self._transport.get_write_buffer_size() else READ_SECONDS)

    def abort(self) -> None:
        """Close the connection immediately."""
        self._transport.abort()

    def set_busy(self, busy: bool) -> None:
        """Whether one of the connection's messages is being handled."""
        if busy:
            self._connections.waiting.pop(self, None)
        elif self in self._connections.connections:
            self._connections.waiting[self] = None

    def _close_within(self, seconds: float) -> None:
        self._transport.close()
        self._timers.start("closing", seconds, self.abort)

    def pause(self, reason: str) -> None:
        """Stop reading from the client until `resume` is called with the same reason."""
        if not self._pauses:
            self._transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """Read from the client again if there is no other reason to pause."""
        self._pauses.discard(reason)
        if not self._pauses and not self._transport.is_closing():
            self._transport.resume_reading()

    # From the client to gRPC's server.

    async def _connect(self) -> None:
        try:
            await self._loop.create_unix_connection(partial(ServerConnection, self), self._path)
        except OSError:
            self.disconnect("the server cannot take more connections now. Try again in a second")

    def server_connected(self, server: asyncio.Transport) -> None:
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
        """Relay complete frames, as many as the client may send now."""
        if self._server is None or self._transport.is_closing():
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
        if self._filter.waits_for_turn and "turn" not in self._pauses:
            self.pause("turn")
            self._turn.wait(self._begin_turn)
        if self._filter.credit <= 0:
            self.pause("credit")
            self._credit.wait(self._read_again)
            if "flood" not in self._timers:
                self._timers.start("flood", FLOOD_SECONDS, self._end_flood)

    def _read_again(self) -> None:
        self._relay()
        if self._filter.credit > 0:
            self.resume("credit")

    def _begin_turn(self) -> None:
        self.resume("turn")
        self._relay()

    def _end_flood(self) -> None:
        if self._credit.available(self._loop.time()) < FRAMES_PER_SECOND:
            self.disconnect("too many frames that carry no message")

    # From gRPC's server to the client.

    def relay_response(self, data: bytes) -> None:
        """Relay bytes of gRPC's server, and close the streams that end in them."""
        self._transport.write(data)
        for kind, flags, number in self._responses.feed(data):
            ended = kind in (HEADERS, DATA) and flags & END_STREAM
            if ended or kind == RST_STREAM:
                if ended and (stream := self._streams.get(number)) and stream.taken:
                    self._credit.add_for_response(stream.received)
                self._streams.close(number)

    def server_lost(self) -> None:
        self._server = None
        self._close_within(READ_SECONDS)
