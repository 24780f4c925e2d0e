"""What the chunks of a PNG tell without decoding a pixel (PNG specification, section 5)."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_CHUNKS = 32
_MAX_CHUNK_BYTES = 1024
"""Of a chunk that is not pixels."""
_HARMLESS = frozenset(
    (b"PLTE", b"tRNS", b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tEXt", b"tIME")
)


def is_plain(data: bytes) -> bool:
    """Whether this is a PNG without interlacing, whose chunks are whole, few and small, none of
    which but the pixels is compressed, and which ends where it says.

    What such a file makes its decoder do is bounded by its length and its width and height: nothing
    is inflated but the pixels, of which a decoder needs `height` rows and takes no more.
    """
    position, chunks, pixels = len(SIGNATURE), 0, False
    while position + 12 <= len(data) and chunks < _MAX_CHUNKS:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if chunks == 0 and (kind != b"IHDR" or length != 13 or data[28:29] != b"\0"):
            return False  # byte 28 says whether it is interlaced
        if kind == b"IEND":
            return pixels and end == len(data)
        if kind == b"IDAT":
            pixels = True
        elif chunks and (kind not in _HARMLESS or length > _MAX_CHUNK_BYTES):
            return False
        position, chunks = end, chunks + 1
    return False
