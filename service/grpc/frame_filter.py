"""Checks and counts the HTTP/2 frames of one gRPC client before they reach gRPC's server.

Guarantees
- A header block has at most `HEAD_BYTES` bytes, and is complete within `HEAD_SECONDS`.
- A frame has at most `MAX_PAYLOAD` bytes of payload. A control frame has one of the sizes in
  `CONTROL_SIZES`.
- Frames of unknown types are discarded, as RFC 9113 allows (sections 4.1 and 5.5).
- All relayed bytes count toward the upload memory (module `read_buffers`).
- DATA frames belong to a stream that was opened.
- New streams have odd and increasing numbers (RFC 9113, section 5.1.1). gRPC's server would ignore
  other numbers without a response.
- Frames without message data use up the credit of the client (`frame_credit`). Without credit, no
  frame is relayed.
- The number of calls that start in one turn of the event loop is limited (`turn_limit`).

The filter adds the header `STREAM_HEADER` to each call. The header contains the name of the stream,
which the handler of the call uses to find the stream. If a client sends a header with the same
name, the added header takes precedence, because it comes last. A client can declare a length for
its last header value that exceeds the bytes it sends. The added header is then parsed as part of
that value. Such a call has no valid stream name, and is rejected.
"""

from __future__ import annotations

from collections.abc import Callable

from service.grpc.connection_streams import OPEN_STREAMS, ConnectionStreams
from service.grpc.frame_credit import RESET_COST, USEFUL_BYTES
from service.grpc.http2_frames import (
    CONTINUATION,
    CONTROL_SIZES,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADERS,
    MAX_PAYLOAD,
    RST_STREAM,
    field,
    frame,
)
from service.grpc.timers import Timers
from service.grpc.turn_limit import TurnLimit
from service.server.connection import HEAD_SECONDS

KNOWN = {DATA, HEADERS, CONTINUATION, *CONTROL_SIZES}
"""Types of frames that are relayed."""
STREAM_HEADER = "shoal-stream"
"""Header that contains the name of the stream, for the handler."""
HEAD_BYTES = 8 * 1024
"""Maximum number of bytes of a compressed header block. gRPC's server rejects header blocks with
more than 16 KiB after decompression, but decompresses them first."""
CHEAP_HEAD_BYTES = 2048
"""Number of bytes of a HEADERS frame that cost no credit. Few clients send more. One byte can stand
for many bytes after decompression."""


class BadFrame(Exception):
    """The client sent an invalid frame."""


class FrameFilter:
    """Takes complete frames from the received data for relaying, until a limit is reached."""

    def __init__(
        self,
        streams: ConnectionStreams,
        timers: Timers,
        turn: TurnLimit,
        abort: Callable[[], None],
    ) -> None:
        """
        Args:
            streams: The streams of the connection.
            timers: The timers of the connection.
            turn: Limits the calls that all connections start in one turn of the event loop.
            abort: Function that closes the connection immediately.
        """
        self._streams = streams
        self._timers = timers
        self._turn = turn
        self._abort = abort
        self.credit = 0.0
        """Number of frames without message data that may still be relayed."""
        self.waits_for_turn = False
        """Whether `take` stopped at a call that must wait for a later turn of the event loop."""
        self._block_stream = 0
        """Stream number of the incomplete header block. 0: no header block is incomplete."""
        self._block_bytes = 0
        self._ends_stream = False
        """Whether the client ends the stream with the incomplete header block."""

    def take(self, data: bytearray) -> list[bytes]:
        """Remove complete frames from the start of `data`, and return the bytes for gRPC's server.

        The method stops when the credit is used up, or at a call that must wait for a later turn of
        the event loop. Raises BadFrame if a frame is invalid.
        """
        self.waits_for_turn = False
        at = 0
        taken: list[bytes] = []
        while self.credit > 0 and len(data) - at >= HEAD:
            size = int.from_bytes(data[at : at + 3], "big")
            end = at + HEAD + size
            kind, flags = data[at + 3], data[at + 4]
            _check_size(kind, size)
            if len(data) < end:
                break
            if kind == HEADERS and self._turn.is_reached:
                self.waits_for_turn = True
                break
            number = int.from_bytes(data[at + 5 : at + HEAD], "big") & 0x7FFFFFFF
            relayed = self._read(kind, flags, number, bytes(data[at:end]))
            if kind != DATA:  # `_read_data` counts the bytes of DATA frames
                self._streams.receive(None, len(relayed))
            if relayed:
                taken.append(relayed)
            at = end
        del data[:at]
        return taken

    def _read(self, kind: int, flags: int, number: int, data: bytes) -> bytes:
        """Check a complete frame, and subtract its cost from the credit.

        The method returns the bytes to relay. It returns no bytes for a frame of an unknown type.
        """
        size = len(data) - HEAD
        if kind in (HEADERS, CONTINUATION) or self._block_stream:
            if name_frame := self._read_headers(kind, flags, number, size):
                return data[:4] + bytes((flags & ~END_HEADERS,)) + data[5:] + name_frame
        elif kind == DATA:
            self._read_data(flags, number, size)
        elif kind == RST_STREAM:
            self.credit -= RESET_COST
            self._streams.close(number)
        else:
            self.credit -= _cost(size)
        return data if kind in KNOWN else b""

    def _read_headers(self, kind: int, flags: int, number: int, size: int) -> bytes:
        """Check a frame of a header block.

        If the frame completes the headers of a new stream, the method returns a CONTINUATION frame
        that contains the stream's name. The caller appends this frame to the relayed frame.
        Otherwise, the method returns no bytes.
        """
        if self._block_stream:
            self.credit -= _cost(size)
            if kind != CONTINUATION or number != self._block_stream:
                raise BadFrame("a header block is interrupted by another frame")
        else:
            if kind == CONTINUATION:
                raise BadFrame("a CONTINUATION frame does not follow a HEADERS frame")
            if not number % 2:
                raise BadFrame(f"a client may not open stream {number}: the number must be odd")
            self._block_stream, self._block_bytes = number, 0
            self.credit -= max(0, size - CHEAP_HEAD_BYTES) // USEFUL_BYTES
            self._ends_stream = bool(flags & END_STREAM)
        self._block_bytes += size
        if self._block_bytes > HEAD_BYTES:
            raise BadFrame(f"a header block is longer than {HEAD_BYTES} bytes")
        if not flags & END_HEADERS:
            if kind == HEADERS:
                self._timers.start("headers", HEAD_SECONDS, self._abort)
            return b""
        self._timers.cancel("headers")
        self._block_stream = 0
        return self._end_headers(number)

    def _end_headers(self, number: int) -> bytes:
        self.credit -= 1
        if number <= self._streams.last:  # the block has the trailers of an earlier stream
            if self._ends_stream and (stream := self._streams.get(number)):
                self._streams.complete(stream)
            return b""
        if self._streams.is_full:
            raise BadFrame(f"more than {OPEN_STREAMS} calls are open on one connection")
        self._turn.count_call()
        stream = self._streams.open(number)
        if self._ends_stream:
            self._streams.complete(stream)
        return frame(CONTINUATION, END_HEADERS, number, field(STREAM_HEADER, stream.name))

    def _read_data(self, flags: int, number: int, size: int) -> None:
        if number > self._streams.last or not number % 2:
            raise BadFrame(f"a DATA frame belongs to stream {number}, which was never opened")
        stream = self._streams.get(number)
        self._streams.receive(None, HEAD)
        if size:
            self._streams.receive(stream, size)
        if stream is None:  # the server has already closed the stream
            self.credit -= 1
            return
        is_useful = size >= USEFUL_BYTES or (size and flags & END_STREAM)
        if stream.complete or not is_useful:
            self.credit -= 1
        if flags & END_STREAM:
            self._streams.complete(stream)


def _check_size(kind: int, size: int) -> None:
    """Raise BadFrame if a frame of type `kind` may not have `size` bytes of payload."""
    if size > MAX_PAYLOAD:
        raise BadFrame(f"a frame is larger than {MAX_PAYLOAD} bytes")
    if kind in CONTROL_SIZES and size not in CONTROL_SIZES[kind]:
        raise BadFrame(f"a frame of type {kind} may not have {size} bytes of payload")


def _cost(size: int) -> float:
    """Return the credit that a frame with a payload of `size` bytes, but no message, uses up."""
    return 1 + size // USEFUL_BYTES
