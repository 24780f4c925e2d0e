"""Checks and counts the HTTP/2 frames of one gRPC client before they reach gRPC's server.

Guarantees
- A header block is limited in bytes and in fields (`header_block`), and is complete within
  `HEAD_SECONDS`. A complete header block is relayed as one HEADERS frame.
- A frame has at most `MAX_PAYLOAD` bytes of payload. A control frame has one of the sizes in
  `CONTROL_SIZES`.
- Frames of unknown types are discarded, as RFC 9113 allows (sections 4.1 and 5.5).
- All relayed bytes count toward the upload memory (module `read_buffers`).
- DATA frames belong to a stream that was opened.
- New streams have odd and increasing numbers (RFC 9113, section 5.1.1). gRPC's server would ignore
  other numbers without a response.
- Frames without message data use up the credit of the client (`frame_credit`). Without credit, no
  frame is relayed.
- The number of calls that were relayed and have not begun is limited (`start_limit`).

The filter adds the header `STREAM_HEADER` to each call. The header contains the name of the stream,
which the handler of the call uses to find the stream. If a client sends a header with the same
name, the added header takes precedence, because it comes last.
"""

from __future__ import annotations

from collections.abc import Callable

from service.grpc.connection_streams import OPEN_STREAMS, ConnectionStreams
from service.grpc.frame_credit import RESET_COST, USEFUL_BYTES
from service.grpc.header_block import HeaderBlock
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
    BadFrame,
    field,
)
from service.grpc.timers import Timers
from service.server.connection import HEAD_SECONDS

KNOWN = {DATA, *CONTROL_SIZES}
"""Types of frames that are relayed unchanged."""
STREAM_HEADER = "shoal-stream"
"""Header that contains the name of the stream, for the handler."""
CHEAP_HEAD_BYTES = 2048
"""Number of bytes of a HEADERS frame that cost no credit. Few clients send more."""


class FrameFilter:
    """Takes complete frames from the received data for relaying, until a limit is reached."""

    def __init__(
        self,
        streams: ConnectionStreams,
        timers: Timers,
        abort: Callable[[], None],
    ) -> None:
        """
        Args:
            streams: The streams of the connection.
            timers: The timers of the connection.
            abort: Function that closes the connection immediately.
        """
        self._streams = streams
        self._timers = timers
        self._abort = abort
        self.credit = 0.0
        """Number of frames without message data that may still be relayed."""
        self.waits_to_start = False
        """Whether `take` stopped at a call that must wait until other calls have begun."""
        self._block: HeaderBlock | None = None
        """The incomplete header block. None: no header block is incomplete."""

    def take(self, data: bytearray) -> list[bytes]:
        """Remove complete frames from the start of `data`, and return the bytes for gRPC's server.

        The method stops when the credit is used up, or at a call that must wait until other calls
        have begun. Raises BadFrame if a frame is invalid.
        """
        self.waits_to_start = False
        at = 0
        taken: list[bytes] = []
        while self.credit > 0 and len(data) - at >= HEAD:
            size = int.from_bytes(data[at : at + 3], "big")
            end = at + HEAD + size
            kind, flags = data[at + 3], data[at + 4]
            _check_size(kind, size)
            if len(data) < end:
                break
            if kind in (HEADERS, CONTINUATION) and not self._streams.may_open:
                self.waits_to_start = True
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

        Returns the bytes to relay. For a frame of an unknown type, and for a part of an incomplete
        header block, the result is empty.
        """
        size = len(data) - HEAD
        if kind in (HEADERS, CONTINUATION) or self._block is not None:
            return self._read_headers(kind, flags, number, data[HEAD:])
        if kind == DATA:
            self._read_data(flags, number, size)
        elif kind == RST_STREAM:
            self.credit -= RESET_COST
            self._streams.close(number)
        else:
            self.credit -= _cost(size)
        return data if kind in KNOWN else b""

    def _read_headers(self, kind: int, flags: int, number: int, payload: bytes) -> bytes:
        """Check a frame of a header block. If the block is complete, return the bytes to relay."""
        if self._block is not None:
            self.credit -= _cost(len(payload))
            if kind != CONTINUATION or number != self._block.number:
                raise BadFrame("a header block is interrupted by another frame")
            self._block.add(payload)
        else:
            if kind == CONTINUATION:
                raise BadFrame("a CONTINUATION frame does not follow a HEADERS frame")
            if not number % 2:
                raise BadFrame(f"stream {number} was opened by a client: the number must be odd")
            self.credit -= max(0, len(payload) - CHEAP_HEAD_BYTES) // USEFUL_BYTES
            self._block = HeaderBlock(number, flags, payload)
            if not flags & END_HEADERS:
                self._timers.start("headers", HEAD_SECONDS, self._abort)
        if not flags & END_HEADERS:
            return b""
        self._timers.cancel("headers")
        block, self._block = self._block, None
        return self._end_headers(block)

    def _end_headers(self, block: HeaderBlock) -> bytes:
        """Return the bytes to relay for a complete header block."""
        self.credit -= 1
        block.check()
        if block.number <= self._streams.last:  # the trailers of an earlier stream
            if block.ends_stream and (stream := self._streams.get(block.number)):
                self._streams.complete(stream)
            return block.encode()
        if self._streams.is_full:
            raise BadFrame(f"more than {OPEN_STREAMS} calls are open on one connection")
        stream = self._streams.open(block.number)
        if block.ends_stream:
            self._streams.complete(stream)
        return block.encode(added=field(STREAM_HEADER, stream.name))

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
        raise BadFrame(f"a frame of type {kind} has an invalid length of {size} bytes")


def _cost(size: int) -> float:
    """Return the credit that a frame with a payload of `size` bytes, but no message, uses up."""
    return 1 + size // USEFUL_BYTES
