"""The outline of a JSON text: what is left of it when its long strings are put aside.

Parsing JSON keeps the event loop, some 10 ms for 256 KiB of the worst there is. A photo in base64
is one string of megabytes that needs no parsing: finding its two quotes is enough. So the outline
is bounded and the strings are not, except by the limit of the body.
"""

from __future__ import annotations

import binascii
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from service.errors import BadInference

MAX_OUTLINE = 256 * 1024
MAX_LISTS = 24_000
LONG = 4096
MAX_STRINGS = 4000
PIECE = 512 * 1024
"""Characters of base64 that take about a millisecond; a multiple of four."""

# The rest of a string in which something is escaped, and its quote.
_ESCAPED = re.compile(rb'(?:[^"\\]|\\.)*+"', re.DOTALL)

Text = str | memoryview
Aside = Mapping[str, memoryview]
"""What stands in the outline -> the string that stood there, in the text itself. Each name stands
there once: a client that could write it again would get a long string for a few bytes."""


def outline(text: bytes) -> tuple[bytes, Aside]:
    """A string is put aside if it is long and has no backslash. In its place is a name that the
    client cannot know, because it is made at random when the text has arrived.

    Raises BadInference: the outline is longer than `MAX_OUTLINE`, or of too many lists.
    """
    if len(text) <= MAX_OUTLINE:
        return _bounded(text), {}
    view = memoryview(text)
    kept: list[bytes] = []
    aside: dict[str, memoryview] = {}
    start = end = put_aside = 0
    secret = secrets.token_hex(8)
    for _ in range(MAX_STRINGS):
        begin = text.find(b'"', end) + 1
        if not begin or begin - put_aside > MAX_OUTLINE:
            break
        end = text.find(b'"', begin) + 1 or len(text)
        if text.find(b"\\", begin, end) >= 0:
            escaped = _ESCAPED.match(text, begin, begin + MAX_OUTLINE)
            end = escaped.end() if escaped else len(text)
        elif end - begin > LONG:
            name = f"{secret}{len(aside)}"
            kept += text[start:begin], b"\\u0000", name.encode()
            aside[f"\0{name}"] = view[begin : end - 1]
            put_aside += end - 1 - begin
            start = end - 1
    if len(text) - put_aside > MAX_OUTLINE:
        raise BadInference(
            f"The JSON has more than {MAX_OUTLINE:,} bytes without its images in base64. Send "
            "pixels as binary data behind the JSON, or fewer images a request."
        )
    return _bounded(b"".join([*kept, text[start:]])), aside


def _bounded(text: bytes) -> bytes:
    """An empty list costs as much as ten numbers."""
    if text.count(b"[") + text.count(b"{") > MAX_LISTS:
        raise BadInference(
            f"The JSON has more than {MAX_LISTS:,} lists and objects. Send pixels as binary data "
            "behind the JSON, in one flat list, or fewer images a request."
        )
    return text


def base64_pieces(text: Text) -> Iterator[bytes]:
    """What `text` stands for, in pieces of about a millisecond each. Raises BadInference.

    A view is copied, and each piece of the copy is freed as it is decoded: the two together take no
    more memory than the text, once the body that the view is of has been freed.
    """
    copied: Any = bytes if isinstance(text, memoryview) else str
    pieces = [copied(text[start : start + PIECE]) for start in range(0, len(text), PIECE)]
    pieces.reverse()
    return _decoded(pieces)


def _decoded(pieces: list[str | bytes]) -> Iterator[bytes]:
    """`pieces`: the last one first; they are taken out."""
    while pieces:
        try:
            decoded = binascii.a2b_base64(pieces.pop(), strict_mode=True)
        except ValueError as error:
            raise BadInference(NOT_BASE64) from error
        if len(decoded) < PIECE // 4 * 3 and pieces:  # padding within
            raise BadInference(NOT_BASE64)
        yield decoded
        del decoded


NOT_BASE64 = (
    "An element of the input 'image' is not base64 (RFC 4648, with padding). In JSON an image is "
    "a string in base64; as binary data, behind the JSON, it is its own bytes."
)
