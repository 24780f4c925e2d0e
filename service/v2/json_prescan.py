"""Limits the size of the JSON that is parsed, without limiting the images in it.

Parsing JSON blocks the event loop: 256 KiB of the slowest JSON take about 10 ms. An image in base64
is one long string, and finding the two quotes around it is fast. So long strings are taken out of
the text before it is parsed, and only the remainder is limited.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from service.errors import BadInference

MAX_REMAINDER = 256 * 1024
"""Maximum number of bytes of the JSON without its long strings."""
MAX_CONTAINERS = 24_000
"""Maximum number of lists and objects. An empty list takes as long to parse as ten numbers."""
LONG = 4096
"""Number of bytes from which a string is long."""
MAX_STRINGS = 4000
"""Maximum number of strings that are scanned."""

# The rest of a string that contains an escape sequence, with its closing quote.
_ESCAPED = re.compile(rb'(?:[^"\\]|\\.)*+"', re.DOTALL)

LongStrings = Mapping[str, memoryview]
"""Maps each placeholder to the string that it replaces, as a view of the text. Each placeholder
occurs once in the remainder: a client that could repeat it would get a long string for a few
bytes."""


def take_out_long_strings(text: bytes) -> tuple[bytes, LongStrings]:
    """Replace each long string that has no backslash with a placeholder.

    Placeholders are random, so clients cannot know them. A text of at most `MAX_REMAINDER` bytes
    stays as it is.

    Args:
        text: The JSON text. It need not be valid.

    Returns:
        The remainder, which is still to be parsed, and the long strings.

    Raises:
        BadInference: The remainder has more than `MAX_REMAINDER` bytes or more than
            `MAX_CONTAINERS` lists and objects.
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
            f"The JSON has more than {MAX_REMAINDER:,} bytes without its images in base64. Send "
            "pixels as binary data after the JSON, or fewer images per request."
        )
    remainder = b"".join([*kept, text[start:]])
    _check_containers(remainder)
    return remainder, long_strings


def _check_containers(text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise BadInference(
            f"The JSON has more than {MAX_CONTAINERS:,} lists and objects. Send pixels as binary "
            "data after the JSON, in one flat list, or fewer images per request."
        )
