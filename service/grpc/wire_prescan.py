"""Limits the size of a ModelInferRequest, apart from the images in the message.

Parsing a message blocks the event loop and takes memory. A message with 10 MiB of images takes 1 ms
and almost no memory. A malicious message of 10 MiB takes 0.7 s and 455 MiB. Therefore, this module
checks a message in the wire format, before the message is parsed
(https://protobuf.dev/programming-guides/encoding/). Everything that is not an image is limited.
"""

from __future__ import annotations

from typing import Any

from service.errors import BadInference

MAX_FIELDS = 1024
"""Maximum number of fields, including nested fields."""
MAX_REST = 2**20
"""Maximum number of bytes besides the images. Pixels in `contents` count: 64 images as FP32 have
786,432 bytes."""

IMAGES: dict[str, Any] = {}
"""Marks a field that contains images. The length of this field does not count."""
# Maps the number of each field with nested fields to a map of these nested fields. If a field is
# not in this table, its whole length counts.
REQUEST = {
    5: {5: {8: IMAGES}},  # inputs, contents, bytes_contents
    6: {},  # outputs
    7: IMAGES,  # raw_input_contents
}
VARINT, LENGTH = 0, 2
FIXED = {1: 8, 5: 4}


def check(message: bytes) -> None:
    """Check the limits of an encoded ModelInferRequest.

    Raises BadInference if the message exceeds a limit, or is not in the wire format.
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
                    "bytes besides the images. Send pixels in raw_input_contents, or send fewer "
                    "images per request."
                )
        if at != end:
            raise BadInference(NOT_A_MESSAGE)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the variable-length integer at position `at`, and the position after it."""
    value = 0
    for position, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise BadInference(NOT_A_MESSAGE)


NOT_A_MESSAGE = "The request is not a ModelInferRequest of the Open Inference Protocol v2."
