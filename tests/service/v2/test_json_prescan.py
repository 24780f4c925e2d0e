"""Tests that long strings are taken out of JSON, and that the remainder is limited."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadInference
from service.v2.json_prescan import (
    LONG,
    MAX_CONTAINERS,
    MAX_REMAINDER,
    MAX_STRINGS,
    LongStrings,
    take_out_long_strings,
)

PADDING = "x" * MAX_REMAINDER


def restored(value: Any, long_strings: LongStrings) -> Any:
    """The value of the text, put together from its parsed remainder and its long strings."""
    if isinstance(value, str):
        return bytes(long_strings[value]).decode() if value in long_strings else value
    if isinstance(value, list):
        return [restored(item, long_strings) for item in value]
    if isinstance(value, dict):
        return {
            restored(name, long_strings): restored(item, long_strings)
            for name, item in value.items()
        }
    return value


def test_prescan_keeps_a_short_text() -> None:
    """A text within the limit stays as it is, long strings included."""
    text = json.dumps(["a" * (LONG + 1)]).encode()
    assert take_out_long_strings(text) == (text, {})


def test_prescan_takes_out_long_strings_only() -> None:
    """Long strings are taken out; short strings and numbers stay."""
    text = json.dumps({"data": [PADDING, "short", PADDING], "n": 1}).encode()
    remainder, long_strings = take_out_long_strings(text)
    assert len(remainder) < 100 and len(long_strings) == 2
    assert restored(json.loads(remainder), long_strings) == json.loads(text)


strings = st.text(max_size=20) | st.integers(LONG - 3, LONG + 3).map(lambda n: "y" * n)
values = st.recursive(
    strings | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=40)
@given(values, st.booleans())
def test_prescan_loses_nothing(value: Any, escaped: bool) -> None:
    """Every valid text, escape sequences included, can be restored from the two results."""
    text = json.dumps([PADDING, value], ensure_ascii=escaped).encode()
    remainder, long_strings = take_out_long_strings(text)
    assert restored(json.loads(remainder), long_strings) == [PADDING, value]


PLACEHOLDERS = [r'"\u00000"', r'"\u00001"', r'"\u0000"', r'"0"', r'"\u0000\u0030"']


@given(st.lists(st.sampled_from([*PLACEHOLDERS, f'"{PADDING}"', '"short"']), max_size=40))
def test_prescan_does_not_mistake_strings_for_placeholders(strings: list[str]) -> None:
    """A string that resembles a placeholder keeps its own value."""
    text = f'["{PADDING}",{",".join([*strings, "1"])}]'.encode()
    remainder, long_strings = take_out_long_strings(text)
    assert restored(json.loads(remainder), long_strings) == json.loads(text)


def test_placeholders_differ_for_every_text() -> None:
    """A placeholder that a client has seen does not help it with the next request."""
    text = f'["{PADDING}"]'.encode()
    names = {name for _ in range(100) for name in take_out_long_strings(text)[1]}
    assert len(names) == 100


@given(st.binary(max_size=200).map(lambda noise: noise.replace(b"z", b'"')))
def test_prescan_accepts_any_bytes(noise: bytes) -> None:
    """Invalid JSON raises no error in the prescan, and its end stays in the remainder."""
    text = b'["' + PADDING.encode() + b'"' + noise
    remainder, _ = take_out_long_strings(text)
    assert remainder.endswith(noise[-20:])


EXPENSIVE = {
    "numbers": b"[" + b"1," * MAX_REMAINDER + b"1]",
    "strings": b"[" + b'"",' * MAX_REMAINDER + b'""]',
    "long strings": b"[" + b'"%s",' % (b"x" * LONG) * MAX_STRINGS + b'"%s"]' % (b"x" * LONG * 80),
    "quotes": b'"' * 10_000_001,
    "escaped quotes": b'"' + b'\\"' * 5_000_000 + b'"',
    "backslashes": b'"' + b"\\" * 10_000_000,
    "unterminated string": b'"' + b"x" * 100 + b"\\" + b"x" * 10_000_000,
    "long strings with escapes": (b'"' + b"\\n" * 60_000 + b'",') * 80,
    "many strings with escapes": b'"\\n",' * 2_500_000,
}


@pytest.mark.parametrize("text", EXPENSIVE.values(), ids=EXPENSIVE)
def test_prescan_rejects_a_large_remainder_quickly(text: bytes) -> None:
    """A text of 10 MiB that would be slow to parse is rejected within milliseconds."""
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        with pytest.raises(BadInference, match=r"262,144 bytes.* binary data"):
            take_out_long_strings(text)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.05


@pytest.mark.parametrize("item", [b"[],", b"{},"])
def test_prescan_limits_lists_and_objects(item: bytes) -> None:
    """Exactly `MAX_CONTAINERS` arrays and objects are accepted, and one more is rejected."""
    with pytest.raises(BadInference, match="24,000 arrays"):
        take_out_long_strings(b"[" + item * MAX_CONTAINERS)
    assert take_out_long_strings(b"[" + item * (MAX_CONTAINERS - 1))[1] == {}
