"""Relays the frames of a gRPC client to gRPC's server, within bounds.

gRPC's server buffers whole messages without telling how much of them has arrived, and rejects new
connections rather than closes idle ones. So clients connect to the `front`, and a relay reads the
heads of the frames and passes everything on over a local socket. Promises
- At most `SHOAL_MAX_CONNECTIONS` connections; a new one takes the place of another
  (`connection_limit`). A connection waits unless one of its complete messages is being answered.
- The connection preface must be complete within `HEAD_SECONDS`, a header block within
  `HEAD_SECONDS` and `HEAD_BYTES`.
- Frames that cost work and carry no message (PING, SETTINGS, RST_STREAM, empty DATA and others) are
  relayed at `FRAMES_PER_SECOND` for all connections of a client network together, after a burst of
  `FRAMES_AT_ONCE`, so that connecting again gives no further burst. An answered call allows further
  frames where it carried a message. Connections that send more are read more slowly, and are closed
  if this lasts for `FLOOD_SECONDS`. They are not closed at once, because honest clients cancel in
  bursts.
- All connections together open a bounded number of calls in one turn of the event loop (`turn`).
- A connection has at most `OPEN_STREAMS` streams. A stream without a handler ends within
  `READ_SECONDS`, with its connection: gRPC's server has not begun to handle it, or the client does
  not read the answer. `streams` bounds the streams of all connections.
- New streams must have odd and increasing numbers (RFC 9113, section 5.1.1). gRPC's server ignores
  others without an answer.
- A client that does not read its answers for `READ_SECONDS` is disconnected.
- Each connection has at most 160 KiB in buffers here: 48 KiB that are not relayed yet, 64 KiB on
  the way to gRPC's server and 48 KiB on the way to the client. What is relayed counts as an upload
  (`streams`), stream by stream.

The relay adds a header with the name of the stream, by which the handler finds it. It follows the
client's headers, and the last header of a name counts. A client can make it a part of its own last
header, by announcing a longer value than it sends. Then the call has no name that exists, and is
rejected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from service.grpc.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    MAX_PAYLOAD,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Heads,
    field,
    frame,
    goaway,
)
from service.grpc.streams import Stream, Streams
from service.grpc.turn import Turn
from service.rate_limit import RateLimiter, network
from service.server.connection import HEAD_SECONDS, READ_SECONDS
from service.server.connection_limit import Connections

STREAM_HEADER = "shoal-stream"
HEAD_BYTES = 32 * 1024
"""Maximum number of bytes of a compressed header block. gRPC rejects more than 16 KiB
uncompressed."""
FRAMES_PER_SECOND = 200.0
FRAMES_AT_ONCE = 1000
FRAMES_PER_ANSWER = 9.0
"""Maximum number of further frames allowed for each answered call: its headers, acknowledgments,
window updates, probes of the bandwidth. One for each `USEFUL_BYTES` of its message."""
OPEN_STREAMS = 256
"""Maximum number of open streams of a connection. gRPC's server allows clients 128, and refuses
more as soon as a client has acknowledged that."""
FLOOD_SECONDS = 30.0
RESET_COST = 4.0
"""Number of frames that one RST_STREAM counts as: work for its stream is lost."""
USEFUL_BYTES = 256
"""DATA frames with fewer bytes count as frames without a message, unless they end one."""
BUFFERED = 16_384
"""Bytes in a peer's write buffer above which the other side is not read."""
_INBOX = memoryview(bytearray(32_768))
"""Buffer for reading, which all connections share."""


class Connection(asyncio.BufferedProtocol):
    """The connection of a client."""

    def __init__(
        self,
        connections: Connections,
        streams: Streams,
        path: str,
        allowance: RateLimiter,
        turn: Turn,
    ) -> None:
        """
        Args:
            connections: The limit on them.
            streams: All streams.
            path: The Unix socket of gRPC's server.
            allowance: Limits the frames of each client network.
            turn: Limits the calls of all connections.
        """
        self._connections = connections
        self._all_streams = streams
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._incoming = bytearray()
        self._core: asyncio.Transport | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._answers = Heads()
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._computed = 0
        """Number of complete messages that are being answered."""
        self._timers: dict[object, asyncio.TimerHandle] = {}
        self._allowance = allowance
        self._turn = turn
        self._frames = 0.0
        """Number of frames that the client may send, while frames are passed on."""
        self._holding_back = set[str]()
        """Reasons why the client is not read now."""
        self._block_stream = 0
        """Number of the stream whose header block is incomplete, or 0."""

    # From the client.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(BUFFERED)
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if peer else ""
        self.network = network(self._client)
        if not self._connections.admit(self):
            transport.write(frame(SETTINGS, 0, 0))
            self.disconnect("too many connections: all of them are busy. Try again in a second")
            return
        self._within(HEAD_SECONDS, "preface", self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.remove(self)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for number in list(self._streams):
            self._close(number)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._core is not None:
            self._core.abort()

    def make_room(self) -> None:
        self.disconnect("too many connections: another client takes this place. Try again later")

    def disconnect(self, reason: str) -> None:
        """Close the connection, after a GOAWAY with the reason if the client reads."""
        if self._answers.between:
            self._transport.write(goaway(reason))
        self._close_within(0 if self._transport.get_write_buffer_size() else READ_SECONDS)

    def _close_within(self, seconds: float) -> None:
        self._transport.close()
        self._within(seconds, "closing", self.abort)

    def abort(self) -> None:
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _INBOX

    def buffer_updated(self, count: int) -> None:
        self._incoming += _INBOX[:count]
        if self._core is not None:
            self._relay()
        elif not PREFACE.startswith(self._incoming[: len(PREFACE)]):
            self._close_within(READ_SECONDS)
        elif len(self._incoming) >= len(PREFACE) and self._connecting is None:
            self._met("preface")
            self._hold_back("connecting")
            self._connecting = self._loop.create_task(self._connect())

    def pause_writing(self) -> None:
        self._within(READ_SECONDS, "reading", self.abort)
        if self._core is not None:
            self._core.pause_reading()

    def resume_writing(self) -> None:
        self._met("reading")
        if self._core is not None:
            self._core.resume_reading()

    # To and from gRPC's server.

    async def _connect(self) -> None:
        try:
            await self._loop.create_unix_connection(partial(_Core, self), self._path)
        except OSError:
            self.disconnect("the server cannot take more connections now. Try again in a second")

    def core_made(self, core: asyncio.Transport) -> None:
        if self._transport.is_closing():
            core.abort()
            return
        self._core = core
        self._core.set_write_buffer_limits(BUFFERED)
        self._core.write(PREFACE)
        del self._incoming[: len(PREFACE)]
        self._relay()
        self._go_on("connecting")

    def _relay(self) -> None:
        """Pass on complete frames, as many as the connection may send now."""
        if self._core is None or self._transport.is_closing():
            return
        now = self._loop.time()
        self._frames = allowed = self._allowance.left(self.network, now)
        if allowed >= FRAMES_PER_SECOND:
            self._met("flood")
        try:
            self._pass_on(self._core)
        finally:
            self._allowance.owe(self.network, allowed - self._frames, now)

    def _pass_on(self, core: asyncio.Transport) -> None:
        data, begin, at = self._incoming, 0, 0
        passed: list[bytes] = []
        while self._frames > 0 and len(data) - at >= HEAD:
            size = int.from_bytes(data[at : at + 3], "big")
            end = at + HEAD + size
            if size > MAX_PAYLOAD:
                self.disconnect(f"a frame is larger than {MAX_PAYLOAD} bytes")
                return
            if len(data) < end:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == HEADERS and self._turn.is_over:
                self._wait_for_turn()
                break
            number = int.from_bytes(data[at + 5 : at + HEAD], "big") & 0x7FFFFFFF
            if kind in (HEADERS, CONTINUATION) or self._block_stream:
                named = self._read_headers(kind, flags, number, size)
                if named is None:
                    return
                if named:  # one more field follows in the block
                    data[at + 4] &= ~END_HEADERS
                    passed += (bytes(data[begin:end]), named)
                    begin = end
            elif kind == DATA:
                if number > self._last_stream or not number % 2:
                    self.disconnect(f"data belongs to stream {number}, which is not open")
                    return
                self._read_data(flags, number, size)
            else:
                self._frames -= RESET_COST if kind == RST_STREAM else 1
                if kind == RST_STREAM:
                    self._close(number)
            at = end
        passed.append(bytes(data[begin:at]))
        del data[:at]
        core.writelines(passed)
        if self._frames <= 0:
            self._hold_back("frames")
            self._within(0.1, "frames", self._read_again)
            if "flood" not in self._timers:
                self._within(FLOOD_SECONDS, "flood", self._end_flood)

    def _read_again(self) -> None:
        self._met("frames")
        self._relay()
        if self._frames > 0:
            self._go_on("frames")

    def _wait_for_turn(self) -> None:
        if "turn" not in self._holding_back:
            self._hold_back("turn")
            self._turn.wait(self._begin_turn)

    def _begin_turn(self) -> None:
        self._go_on("turn")
        self._relay()

    def _end_flood(self) -> None:
        if self._allowance.left(self.network, self._loop.time()) < FRAMES_PER_SECOND:
            self.disconnect("too many frames that carry no message")

    def _read_headers(self, kind: int, flags: int, number: int, size: int) -> bytes | None:
        """Check a frame of a header block. Returns bytes to insert behind it: the header with the
        stream's number if it ends the headers of a new stream. None: the connection has ended."""
        if self._block_stream:
            self._frames -= 1
            if kind != CONTINUATION or number != self._block_stream:
                self.disconnect("a header block is interrupted")
                return None
        else:
            if kind == CONTINUATION:
                self.disconnect("a header block has no beginning")
                return None
            if not number % 2:
                self.disconnect(f"a client may not open stream {number}: its numbers are odd")
                return None
            self._block_stream, self._block_bytes = number, 0
            self._ends = bool(flags & END_STREAM)
        self._block_bytes += size
        if self._block_bytes > HEAD_BYTES:
            self.disconnect(f"a header block is longer than {HEAD_BYTES} bytes")
            return None
        if not flags & END_HEADERS:
            if kind == HEADERS:
                self._within(HEAD_SECONDS, "headers", self.abort)
            return b""
        self._met("headers")
        self._block_stream = 0
        return self._open(number)

    def _open(self, number: int) -> bytes | None:
        self._frames -= 1
        if number <= self._last_stream:  # trailers
            if self._ends and number in self._streams:
                self._all_streams.complete(self._streams[number])
            return b""
        if len(self._streams) >= OPEN_STREAMS:
            self.disconnect(f"more than {OPEN_STREAMS} calls are open on one connection")
            return None
        self._last_stream = number
        self._turn.count_call()
        self._within(READ_SECONDS, number, self.abort)
        stream = self._all_streams.open(
            self._client, partial(self._progress, number), self._make_room_for_streams
        )
        self._streams[number] = stream
        if self._ends:
            self._all_streams.complete(stream)
        named = field(STREAM_HEADER, stream.name)
        return frame(CONTINUATION, END_HEADERS, number, named)

    def _read_data(self, flags: int, number: int, size: int) -> None:
        stream = self._streams.get(number)
        if stream is None:  # sent before the client knew that the stream was closed
            self._frames -= 1
            return
        if size:
            self._all_streams.receive(stream, size)
        if flags & END_STREAM:
            self._all_streams.complete(stream)
        elif size < USEFUL_BYTES:
            self._frames -= 1

    def answer(self, data: bytes) -> None:
        """Relay bytes of gRPC's server to the client."""
        self._transport.write(data)
        for kind, flags, number in self._answers.feed(data):
            ended = kind in (HEADERS, DATA) and flags & END_STREAM
            if ended or kind == RST_STREAM:
                if ended and (stream := self._streams.get(number)):
                    more = min(FRAMES_PER_ANSWER, stream.received // USEFUL_BYTES)
                    self._allowance.give_back(self.network, more)
                self._close(number)

    def core_lost(self) -> None:
        self._core = None
        self._close_within(READ_SECONDS)

    def pause_core(self) -> None:
        self._hold_back("core")

    def resume_core(self) -> None:
        self._go_on("core")

    # Streams.

    def _progress(self, number: int, stream: Stream) -> None:
        if number not in self._streams:
            return
        if stream.answered:
            if stream.taken:
                self._leave()
            self._within(READ_SECONDS, number, self.abort)
        elif stream.taken:
            self._all_streams.complete(stream)
            self._computed += 1
            self._connections.waiting.pop(self, None)
        else:
            self._met(number)

    def _make_room_for_streams(self) -> None:
        self.disconnect("too many calls: this connection has the one whose answer was not read")
        for number in list(self._streams):
            self._close(number)

    def _leave(self) -> None:
        self._computed -= 1
        if not self._computed and self in self._connections.connections:
            self._connections.waiting[self] = None

    def _close(self, number: int) -> None:
        self._met(number)
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        self._all_streams.close(stream)
        if stream.taken and not stream.answered:
            self._leave()

    # Timers, and reading from the client.

    def _within(self, seconds: float, purpose: object, late: Callable[[], None]) -> None:
        self._met(purpose)
        self._timers[purpose] = self._loop.call_later(seconds, late)

    def _met(self, purpose: object) -> None:
        if timer := self._timers.pop(purpose, None):
            timer.cancel()

    def _hold_back(self, reason: str) -> None:
        if not self._holding_back:
            self._transport.pause_reading()
        self._holding_back.add(reason)

    def _go_on(self, reason: str) -> None:
        self._holding_back.discard(reason)
        if not self._holding_back and not self._transport.is_closing():
            self._transport.resume_reading()


class _Core(asyncio.BufferedProtocol):
    """The connection of a relay to gRPC's server."""

    def __init__(self, client: Connection) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._client.core_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _INBOX

    def buffer_updated(self, count: int) -> None:
        self._client.answer(bytes(_INBOX[:count]))

    def connection_lost(self, error: Exception | None) -> None:
        self._client.core_lost()

    def pause_writing(self) -> None:
        self._client.pause_core()

    def resume_writing(self) -> None:
        self._client.resume_core()
