"""Checks and counts the frames of one gRPC client before they are relayed.

Guarantees
- A header block has at most `HEAD_BYTES` and is complete within `HEAD_SECONDS`.
- A frame has at most `MAX_PAYLOAD` bytes of payload, and control frames have one of the sizes in
  `CONTROL_SIZES`. DATA belongs to a stream that was opened.
- Frames of unknown types are discarded, as RFC 9113 allows (sections 4.1 and 5.5).
- All bytes that are relayed are counted in `read_buffers`.
- New streams have odd and increasing numbers (RFC 9113, section 5.1.1). gRPC's server would ignore
  others without a response.
- Frames without a message use up the client's credit (`frame_credit`). Without credit, no frame is
  relayed.
- All connections together start a limited number of calls in one turn of the event loop.

The filter adds a header with the name of the stream to each call, so that its handler finds the
stream. The header follows the client's headers, and the last header of a name counts. A client can
make it a part of its own last header by announcing a longer value than it sends. Then the call has
no existing name and is rejected.
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
HEAD_BYTES = 32 * 1024
"""Maximum number of bytes of a compressed header block. gRPC rejects more than 16 KiB
uncompressed."""


class BadFrame(Exception):
    """The client sent a frame that is not allowed."""


class FrameFilter:
    """Takes complete frames out of a client's data, as far as they may be relayed now."""

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
            turn: Limits the calls of all connections.
            abort: Closes the connection.
        """
        self._streams = streams
        self._timers = timers
        self._turn = turn
        self._abort = abort
        self.credit = 0.0
        """Number of frames without a message that may still be relayed."""
        self.waits_for_turn = False
        """Whether `take` stopped at a call that has to wait for a later turn."""
        self._block_stream = 0
        """Stream of the incomplete header block, or 0."""
        self._block_bytes = 0
        self._ends_stream = False
        """Whether the header block ends its stream."""

    def take(self, data: bytearray) -> list[bytes]:
        """Remove complete frames from the start of `data`, and return them for gRPC's server.

        Stops when the credit is used up, or at a call that has to wait for a later turn. Raises
        BadFrame.
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
            if kind != DATA:  # `_read_data` counts those
                self._streams.receive(None, len(relayed))
            if relayed:
                taken.append(relayed)
            at = end
        del data[:at]
        return taken

    def _read(self, kind: int, flags: int, number: int, data: bytes) -> bytes:
        """Check a frame and count it toward the credit. Returns the bytes to relay: none for a
        frame of an unknown type."""
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
        """Check a frame of a header block. If it completes the headers of a new stream, return the
        frame to insert after it; otherwise return no bytes."""
        if self._block_stream:
            self.credit -= _cost(size)
            if kind != CONTINUATION or number != self._block_stream:
                raise BadFrame("a header block is interrupted")
        else:
            if kind == CONTINUATION:
                raise BadFrame("a header block has no beginning")
            if not number % 2:
                raise BadFrame(f"a client may not open stream {number}: its numbers are odd")
            self._block_stream, self._block_bytes = number, 0
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
        if number <= self._streams.last:  # trailers
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
            raise BadFrame(f"data belongs to stream {number}, which is not open")
        stream = self._streams.get(number)
        self._streams.receive(None, HEAD)
        if size:
            self._streams.receive(stream, size)
        if stream is None:  # the client does not know yet that the stream is closed
            self.credit -= 1
            return
        is_useful = size >= USEFUL_BYTES or (size and flags & END_STREAM)
        if stream.complete or not is_useful:
            self.credit -= 1
        if flags & END_STREAM:
            self._streams.complete(stream)


def _check_size(kind: int, size: int) -> None:
    if size > MAX_PAYLOAD:
        raise BadFrame(f"a frame is larger than {MAX_PAYLOAD} bytes")
    if kind in CONTROL_SIZES and size not in CONTROL_SIZES[kind]:
        raise BadFrame(f"a frame of type {kind} may not have {size} bytes of payload")


def _cost(size: int) -> float:
    """Credit for a frame without a message that has `size` bytes of payload."""
    return 1 + size // USEFUL_BYTES
