"""The outline of a ModelInferRequest: what is left of it when its images are put aside. Pure.

Parsing a message keeps the event loop, and takes more memory than the message has: 10 MiB of images
1 ms and next to nothing, 10 MiB of the worst 0.7 s and 455 MiB. So all that is no image is bounded,
by one walk along the wire format (https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from typing import Any

from service.errors import BadInference

MAX_FIELDS = 1024
MAX_REST = 2**20
"""Bytes: 64 images as FP32 in `contents` are 786,432."""

IMAGES: dict[str, Any] = {}
# Numbers of fields -> what is within them; of others, only the length counts.
REQUEST = {
    5: {5: {8: IMAGES}},  # inputs, contents, bytes_contents
    6: {},  # outputs
    7: IMAGES,  # raw_input_contents
}
VARINT, LENGTH = 0, 2
FIXED = {1: 8, 5: 4}


def check(message: bytes) -> None:
    """Raises BadInference: no message, or too much in it that is no image."""
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
                raise BadInference(NO_MESSAGE)
            if fields > MAX_FIELDS or rest > MAX_REST:
                raise BadInference(
                    f"The message has more than {MAX_FIELDS:,} fields, or more than {MAX_REST:,} "
                    "bytes beside its images. Send pixels as raw_input_contents, or fewer images "
                    "a request."
                )
        if at != end:
            raise BadInference(NO_MESSAGE)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    value = 0
    for position, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise BadInference(NO_MESSAGE)


NO_MESSAGE = "The request is not a ModelInferRequest of the Open Inference Protocol v2."
