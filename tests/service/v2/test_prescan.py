"""The outline of a JSON text, and base64 in pieces: as the libraries have it, soon, and bounded."""

from __future__ import annotations

import base64
import json
import os
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadInference
from service.v2.prescan import LONG, MAX_OUTLINE, MAX_STRINGS, PIECE, Aside, base64_pieces, outline

PADDING = "x" * MAX_OUTLINE


def restored(value: Any, aside: Aside) -> Any:
    """What the text said, from its outline and what was put aside."""
    if isinstance(value, str):
        return bytes(aside[value]).decode() if value in aside else value
    if isinstance(value, list):
        return [restored(item, aside) for item in value]
    if isinstance(value, dict):
        return {restored(k, aside): restored(v, aside) for k, v in value.items()}
    return value


def test_a_short_text_is_its_own_outline() -> None:
    text = json.dumps(["a" * (LONG + 1)]).encode()
    assert outline(text) == (text, {})


def test_long_strings_are_put_aside() -> None:
    text = json.dumps({"data": [PADDING, "short", PADDING], "n": 1}).encode()
    short, aside = outline(text)
    assert len(short) < 100 and len(aside) == 2
    assert restored(json.loads(short), aside) == json.loads(text)


strings = st.text(max_size=20) | st.integers(LONG - 3, LONG + 3).map(lambda n: "y" * n)
values = st.recursive(
    strings | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=40)
@given(values, st.booleans())
def test_nothing_is_lost(value: Any, escaped: bool) -> None:
    """Whatever is in the text, escapes included: it can be put together again."""
    text = json.dumps([PADDING, value], ensure_ascii=escaped).encode()
    short, aside = outline(text)
    assert restored(json.loads(short), aside) == [PADDING, value]


PLACEHOLDERS = [r'"\u00000"', r'"\u00001"', r'"\u0000"', r'"0"', r'"\u0000\u0030"']


@given(st.lists(st.sampled_from([*PLACEHOLDERS, f'"{PADDING}"', '"short"']), max_size=40))
def test_outline_keeps_each_string_to_its_place(strings: list[str]) -> None:
    """A string that looks like what stands for a long one stands for itself."""
    text = f'["{PADDING}",{",".join([*strings, "1"])}]'.encode()
    short, aside = outline(text)
    assert restored(json.loads(short), aside) == json.loads(text)


def test_outline_uses_other_names_for_every_text() -> None:
    """What a client learns from one answer does not help with the next request."""
    text = f'["{PADDING}"]'.encode()
    names = {name for _ in range(100) for name in outline(text)[1]}
    assert len(names) == 100


@given(st.binary(max_size=200).map(lambda noise: noise.replace(b"z", b'"')))
def test_no_noise_is_a_surprise(noise: bytes) -> None:
    """What is no JSON stays none, or is refused; nothing else happens."""
    text = b'["' + PADDING.encode() + b'"' + noise
    short, _ = outline(text)
    assert short.endswith(noise[-20:])


HOSTILE = {
    "numbers": b"[" + b"1," * MAX_OUTLINE + b"1]",
    "strings": b"[" + b'"",' * MAX_OUTLINE + b'""]',
    "long strings": b"[" + b'"%s",' % (b"x" * LONG) * MAX_STRINGS + b'"%s"]' % (b"x" * LONG * 80),
    "quotes": b'"' * 10_000_001,
    "escaped quotes": b'"' + b'\\"' * 5_000_000 + b'"',
    "backslashes": b'"' + b"\\" * 10_000_000,
    "no end": b'"' + b"x" * 100 + b"\\" + b"x" * 10_000_000,
    "long escaped": (b'"' + b"\\n" * 60_000 + b'",') * 80,
    "many escaped": b'"\\n",' * 2_500_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_would_take_long_is_refused_soon(text: bytes) -> None:
    """In milliseconds, whatever 10 MiB hold."""
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        with pytest.raises(BadInference, match=r"262,144 bytes .* binary data"):
            outline(text)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.05


@pytest.mark.parametrize("item", [b"[],", b"{},"])
def test_what_would_take_long_to_parse_is_refused(item: bytes) -> None:
    """Within the bound on bytes, too; as many as pixels may have are taken."""
    with pytest.raises(BadInference, match="24,000 lists"):
        outline(b"[" + item * 24_000)
    assert outline(b"[" + item * 23_999)[1] == {}


@given(st.binary(max_size=100))
def test_base64(data: bytes) -> None:
    text = base64.b64encode(data)
    assert b"".join(base64_pieces(text.decode())) == data
    assert b"".join(base64_pieces(memoryview(text))) == data


@pytest.mark.parametrize("size", [PIECE // 4 * 3 - 1, PIECE // 4 * 3, PIECE // 4 * 3 + 1, 10**6])
def test_base64_in_pieces(size: int) -> None:
    data = os.urandom(size)
    pieces = list(base64_pieces(base64.b64encode(data).decode()))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= PIECE // 4 * 3


def test_base64_is_freed_as_it_is_decoded() -> None:
    """A text and what it stands for take no more memory together than the text."""
    text = base64.b64encode(os.urandom(12 * PIECE))
    tracemalloc.start()
    try:
        found = list(base64_pieces(memoryview(text)))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(map(len, found)) == 12 * PIECE
    assert held < len(text) * 0.76 and peak < len(text) + 2 * PIECE


@pytest.mark.parametrize(
    "text",
    ["a", "a===", "aGk", "aGk=aGk=", "aG k", "a-_=", "äöü=", "aGk=\n", "A" * (PIECE - 1) + "=AAAA"],
)
def test_what_is_no_base64(text: str) -> None:
    with pytest.raises(BadInference, match="base64"):
        list(base64_pieces(text))
