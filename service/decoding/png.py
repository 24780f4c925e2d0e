"""Reads the chunks of a PNG without decoding a pixel (PNG specification, section 5)."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_DEPTH_AND_COLOR, _INTERLACING = slice(24, 26), slice(28, 29)
"""Where the header, which is the first chunk, states them."""
_GRAY_OF_16_BITS = b"\x10\0"

_MAX_CHUNKS = 32
_MAX_CHUNK_BYTES = 1024
"""Maximum length of a chunk that has no pixels."""
_HARMLESS = frozenset(
    (b"PLTE", b"tRNS", b"bKGD", b"cHRM", b"gAMA", b"pHYs", b"sBIT", b"sRGB", b"tEXt", b"tIME")
)


def is_plain(data: bytes) -> bool:
    """Whether this is a PNG that is not interlaced, whose chunks are complete, few and small, of
    which only the pixels are compressed, and which ends with its last chunk.

    The work to decode such a file is bounded by its length, width and height: only the pixels are
    inflated, and the decoder stops after `height` rows. Gray of 16 bits is excluded, since it is
    converted by a table of 65,536 entries, which takes longer than a small image.
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
