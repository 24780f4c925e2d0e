"""Limits the size of the JSON in an inference request, apart from the images in the JSON.

Parsing JSON blocks the event loop: 256 KiB of the slowest JSON take about 10 ms. An image in base64
is one long string, and finding the quotes around the string is fast. Therefore, long strings are
removed before the JSON is parsed, and the limits apply to the remaining JSON.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from service.errors import BadInference

MAX_REMAINDER = 256 * 1024
"""Maximum number of bytes of the JSON without its long strings."""
MAX_CONTAINERS = 24_000
"""Maximum number of arrays and objects in total. Parsing an empty array takes as long as parsing
ten numbers."""
LONG = 4096
"""Strings with more bytes than `LONG` are removed before parsing."""
MAX_STRINGS = 4000
"""Maximum number of strings to check for their length. Later strings are not removed."""

# Matches the rest of a string, up to and including the closing quote. Skips escape sequences.
_ESCAPED = re.compile(rb'(?:[^"\\]|\\.)*+"', re.DOTALL)

LongStrings = Mapping[str, memoryview]
"""Maps each placeholder to the long string that it replaces. The string is a view of the JSON."""


def take_out_long_strings(text: bytes) -> tuple[bytes, LongStrings]:
    """Replace long strings in JSON with short placeholders.

    Strings that contain a backslash are not replaced. If `text` has at most `MAX_REMAINDER` bytes,
    nothing is replaced. Placeholders are random. If clients could guess a placeholder, they could
    refer to the same long string many times.

    Args:
        text: The JSON, which need not be valid.

    Returns:
        The remainder, which is the JSON with the placeholders, and the long strings.

    Raises:
        BadInference: The remainder has more than `MAX_REMAINDER` bytes, or more than
            `MAX_CONTAINERS` arrays and objects in total.
    """
    if len(text) <= MAX_REMAINDER:
        _check_containers(text)
        return text, {}
    view = memoryview(text)
    kept: list[bytes] = []
    long_strings: dict[str, memoryview] = {}
    start = end = taken_out = 0
    secret = secrets.token_hex(8)
    for _ in range(MAX_STRINGS):
        begin = text.find(b'"', end) + 1
        if not begin or begin - taken_out > MAX_REMAINDER:
            break
        end = text.find(b'"', begin) + 1 or len(text)
        if text.find(b"\\", begin, end) >= 0:
            escaped = _ESCAPED.match(text, begin, begin + MAX_REMAINDER)
            end = escaped.end() if escaped else len(text)
        elif end - begin > LONG:
            name = f"{secret}{len(long_strings)}"
            kept += text[start:begin], b"\\u0000", name.encode()
            long_strings[f"\0{name}"] = view[begin : end - 1]
            taken_out += end - 1 - begin
            start = end - 1
    if len(text) - taken_out > MAX_REMAINDER:
        raise BadInference(
            f"Apart from images in base64, the JSON has more than {MAX_REMAINDER:,} bytes. Send "
            "pixels as binary data after the JSON, or send fewer images per request."
        )
    remainder = b"".join([*kept, text[start:]])
    _check_containers(remainder)
    return remainder, long_strings


def _check_containers(text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise BadInference(
            f"The JSON has more than {MAX_CONTAINERS:,} arrays and objects in total. Send pixels "
            "as binary data after the JSON or in one flat list, or send fewer images per request."
        )
