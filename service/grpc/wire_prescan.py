"""Limits the size of a ModelInferRequest without limiting the images in it.

Parsing a message blocks the event loop and takes memory: 10 MiB of images take 1 ms and almost no
memory, but 10 MiB of the worst content take 0.7 s and 455 MiB. So one pass over the wire format,
before the message is parsed, limits everything that is not an image
(https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from typing import Any

from service.errors import BadInference

MAX_FIELDS = 1024
"""Maximum number of fields, those within other fields included."""
MAX_REST = 2**20
"""Maximum number of bytes beside the images. 64 images as FP32 in `contents` have 786,432."""

IMAGES: dict[str, Any] = {}
# Maps field numbers to the fields within them. Of all other fields, only the length counts.
REQUEST = {
    5: {5: {8: IMAGES}},  # inputs, contents, bytes_contents
    6: {},  # outputs
    7: IMAGES,  # raw_input_contents
}
VARINT, LENGTH = 0, 2
FIXED = {1: 8, 5: 4}


def check(message: bytes) -> None:
    """Check the limits of an encoded ModelInferRequest.

    Raises BadInference if it exceeds a limit or is not in the wire format.
    """
    fields = rest = 0
    parts: list[tuple[int, int, dict[int, Any]]] = [(0, len(message), REQUEST)]
    while parts:
        at, end, known = parts.pop()
        while at < end:
            fields += 1
            tag, at = _varint(message, at)
            number, kind = tag >> 3, tag & 7
            if kind == LENGTH:
                size, at = _varint(message, at)
                within = known.get(number)
                if within is None:
                    rest += size
                elif within is not IMAGES:
                    parts.append((at, at + size, within))
                at += size
            elif kind == VARINT:
                _, at = _varint(message, at)
            elif kind in FIXED:
                at += FIXED[kind]
            else:
                raise BadInference(NOT_A_MESSAGE)
            if fields > MAX_FIELDS or rest > MAX_REST:
                raise BadInference(
                    f"The message has more than {MAX_FIELDS:,} fields, or more than {MAX_REST:,} "
                    "bytes beside its images. Send pixels in raw_input_contents, or fewer images "
                    "per request."
                )
        if at != end:
            raise BadInference(NOT_A_MESSAGE)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at position `at`, and the position after it."""
    value = 0
    for position, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise BadInference(NOT_A_MESSAGE)


NOT_A_MESSAGE = "The request is not a ModelInferRequest of the Open Inference Protocol v2."
