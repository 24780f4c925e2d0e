"""Reads the chunks of a PNG (PNG specification, section 5) without decoding pixels."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DEPTH_AND_COLOR, _INTERLACING = slice(24, 26), slice(28, 29)
"""Positions of two fields in a PNG: bit depth and color type, and interlace method. The fields are
part of the first chunk, the header."""
_GRAY_OF_16_BITS = b"\x10\0"

_MAX_CHUNKS = 32
"""Maximum number of chunks of a plain PNG."""
_MAX_CHUNK_BYTES = 1024
"""Maximum number of bytes of a chunk without pixels in a plain PNG."""
_HARMLESS = frozenset(
    (b"PLTE", b"tRNS", b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tEXt", b"tIME")
)


def is_plain(data: bytes) -> bool:
    """Whether this is a plain PNG.

    The decoding time of a plain PNG is bounded by its numbers of bytes and pixels.

    A plain PNG is not interlaced. Its chunks are complete, few and small. Only its pixels are
    compressed, and no bytes follow the last chunk. So a decoder inflates only the pixels, and stops
    after as many rows as the header says. A 16-bit gray image is not plain. Its conversion builds a
    table of 65,536 entries, which takes longer than decoding a small image.
    """
    position, chunks, pixels = len(SIGNATURE), 0, False
    while position + 12 <= len(data) and chunks < _MAX_CHUNKS:
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if chunks == 0 and (
            kind != b"IHDR"
            or length != 13
            or data[_DEPTH_AND_COLOR] == _GRAY_OF_16_BITS
            or data[_INTERLACING] != b"\0"
        ):
            return False
        if kind == b"IEND":
            return pixels and end == len(data)
        if kind == b"IDAT":
            pixels = True
        elif chunks and (kind not in _HARMLESS or length > _MAX_CHUNK_BYTES):
            return False
        position, chunks = end, chunks + 1
    return False
