"""Encodes HTTP/2 frames, and finds frame headers in a byte stream (RFC 9113, section 4).

A frame begins with a frame header of 9 bytes: length of the payload (3 bytes), type (1 byte), flags
(1 byte), and stream number (4 bytes). The payload follows.
"""

from __future__ import annotations

from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes that a client sends on a connection (section 3.4)."""
HEAD = 9
"""Number of bytes of a frame header."""
MAX_PAYLOAD = 16_384
"""Maximum number of bytes of a payload, unless the receiver's settings allow more (section
6.5.2)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0x0, 0x1, 0x2, 0x3, 0x4
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x6, 0x7, 0x8, 0x9
END_STREAM, END_HEADERS = 0x1, 0x4
MAX_SETTINGS = 32
"""Maximum number of settings in one SETTINGS frame. RFC 9113 defines 6."""
MAX_DEBUG_DATA = 1024
"""Maximum number of bytes of debug data in a GOAWAY frame."""
CONTROL_SIZES = {
    PRIORITY: range(5, 6),
    RST_STREAM: range(4, 5),
    SETTINGS: range(0, 6 * MAX_SETTINGS + 1, 6),
    PING: range(8, 9),
    GOAWAY: range(8, 8 + MAX_DEBUG_DATA + 1),
    WINDOW_UPDATE: range(4, 5),
}
"""Allowed payload sizes of each control frame type, in bytes (section 6). Control frames carry
neither headers nor messages."""
ENHANCE_YOUR_CALM = 0xB
"""Error code for a client that may cause excessive load (section 7)."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame.

    Args:
        kind: Type of the frame.
        flags: Flags of the frame.
        stream: Stream number. 0: the frame belongs to the connection.
        payload: Payload of the frame.
    """
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def goaway(reason: str) -> bytes:
    """Encode the GOAWAY frame that announces the end of a connection and the reason.

    The frame says that no request was processed, so clients may retry all requests without a
    response.
    """
    payload = bytes(4) + ENHANCE_YOUR_CALM.to_bytes(4, "big") + reason.encode()
    return frame(GOAWAY, 0, 0, payload)


def field(name: str, value: str) -> bytes:
    """Encode a header field without compression.

    The field is a literal without indexing (RFC 7541, section 6.2.2), so it does not depend on
    earlier fields. `name` and `value` must be shorter than 127 bytes.
    """
    parts = (name.encode(), value.encode())
    return b"\0" + b"".join(bytes((len(part),)) + part for part in parts)


class BadFrame(Exception):
    """The client sent an invalid frame."""


class FrameHeads:
    """Finds the frame headers in a stream of bytes that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._head = b""
        self._skip = 0

    @property
    def at_frame_boundary(self) -> bool:
        """Whether the last frame is complete, so that another frame could be inserted."""
        return not self._head and not self._skip

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield the type, flags and stream number of each frame header that ends in `data`."""
        at = min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            head = self._head + data[at : at + HEAD - len(self._head)]
            at += len(head) - len(self._head)
            if len(head) < HEAD:
                self._head = head
                return
            self._head = b""
            size = int.from_bytes(head[:3], "big")
            yield head[3], head[4], int.from_bytes(head[5:], "big")
            skipped = min(size, len(data) - at)
            at += skipped
            self._skip = size - skipped
