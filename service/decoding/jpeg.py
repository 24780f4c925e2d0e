"""Reads the markers of a JPEG (ITU-T T.81, annex B) without decoding pixels."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator

# Files of cameras and editors do not reach these limits: a progressive JPEG has about ten scans,
# and 20 scans are allowed at 64 megapixels. Without the limits, decoding could take minutes.
_MAX_SEGMENTS = 1000
_MAX_SCANS = 64
_MAX_SCANNED_PIXELS = 20 * 64_000_000
_MAX_JUNK = 4096
"""Maximum total number of bytes between the segments of an image. Decoders skip such bytes."""
_SCANS_BYTES = 64 * 1024

_BASELINE, _EXTENDED, _START_OF_SCAN, _END_OF_IMAGE = 0xC0, 0xC1, 0xDA, 0xD9

# Start of a JPEG as most programs write it: a JFIF header, quantization tables, a baseline frame in
# gray or YCbCr, the standard Huffman tables, and a scan with all components. Such an image is plain
# (`is_plain`).
USUAL = re.compile(
    rb"\xff\xd8\xff\xe0\x00\x10JFIF\x00.{9}(?:\xff\xdb\x00\x43.{65}|\xff\xdb\x00\x84.{130}){1,2}"
    rb"\xff\xc0\x00[\x0b\x11]\x08(?P<size>.{4})(?:(?P<gray>\x01).{3}|\x03.{9})"
    rb"(?:\xff\xc4\x00(?:\x1f.{29}|\xb5.{179})){2,4}\xff\xda..(?(gray)\x01|\x03)",
    re.DOTALL,
)
_TOO_MUCH_JUNK = -1
"""Result of `_segments` instead of a marker if more than `_MAX_JUNK` bytes are between segments."""
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Markers that a length follows, and the end of the image. Decoders skip lower codes and restart
markers in a scan, and reject lower codes between segments."""


def frame(data: bytes) -> tuple[int, int, bool] | None:
    """Return width, height, and whether decoders need only one scan.

    Decoders need only one scan if the frame is baseline or extended sequential, and its first scan
    has all components. For other images, decoders keep the coefficients of all scans in memory.
    Returns None if there is no frame header in the first 1,000 segments before the pixels. Raises
    struct.error if the data ends within the header.
    """
    size: tuple[int, int] | None = None
    components, is_sequential = b"", False
    for marker, position in itertools.islice(_segments(data), _MAX_SEGMENTS):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", data, position + 3)
            size, components = (width, height), data[position + 7 : position + 8]
            is_sequential = marker in (_BASELINE, _EXTENDED)
        if marker == _START_OF_SCAN:
            is_sequential = is_sequential and data[position + 2 : position + 3] == components
            break  # pixels follow
    return None if size is None else (*size, is_sequential)


def is_plain(data: bytes) -> bool:
    """Whether this is a baseline JPEG with all components in its first scan.

    The image must also be gray or YCbCr, and have no EXIF, XMP or Adobe segments. Decoders read
    only one scan of such a file, so the size of the image limits the work. In other files, decoders
    read all scans. A scan can be as short as ten bytes, but decoders visit all blocks in each scan.
    """
    if b"Exif" in data or b"http://ns.adobe.com/" in data or b"Adobe" in data:
        return False
    components = b""
    for marker, position in itertools.islice(_segments(data), _MAX_SEGMENTS):
        if marker == _BASELINE:
            components = data[position + 7 : position + 8]
        if marker == _START_OF_SCAN:
            return components in (b"\1", b"\3") and data[position + 2 : position + 3] == components
    return False


def scans(data: bytes) -> int:
    """Return the number of scans that begin in the first 64 KiB.

    Later scans are not counted, because the length of such a file increases its estimated cost.
    """
    return data.count(b"\xff\xda", 0, _SCANS_BYTES)


def has_too_many_parts(data: bytes, pixels: int) -> bool:
    """Whether there are more segments or scans than cameras and editors write for `pixels` pixels.

    Decoders visit all blocks in each scan of a progressive JPEG, even if the scan has few bytes.
    """
    markers = [marker for marker, _ in itertools.islice(_segments(data), _MAX_SEGMENTS + 1)]
    scans = markers.count(_START_OF_SCAN)
    too_many_scans = scans > _MAX_SCANS or scans * pixels > _MAX_SCANNED_PIXELS
    return len(markers) > _MAX_SEGMENTS or too_many_scans or _TOO_MUCH_JUNK in markers


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker and the position after it, until the image ends or has too much junk. In
    the latter case, `_TOO_MUCH_JUNK` is the last marker."""
    position, junk, in_scan = 2, _MAX_JUNK, False
    while found := _MARKER.search(data, position, len(data) if in_scan else position + junk + 2):
        marker = data[found.end() - 1]
        if marker == _END_OF_IMAGE:
            return
        if not in_scan:
            junk -= found.start() - position
        position = found.end()
        yield marker, position
        position += int.from_bytes(data[position : position + 2], "big")
        in_scan = marker == _START_OF_SCAN
    if not in_scan and _MARKER.search(data, position):
        yield _TOO_MUCH_JUNK, position
