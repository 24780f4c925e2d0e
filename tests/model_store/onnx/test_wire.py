"""Protobuf messages are decoded within limits, and everything that is not known is rejected."""

from __future__ import annotations

import struct

import pytest

from model_store.onnx import wire
from model_store.onnx.wire import Field, Kind, Message, Refusal, Refused, decode

INNER = Message("Inner", {1: Field("number", Kind.INT32)})
OUTER = Message(
    "Outer",
    {
        1: Field("number", Kind.INT),
        2: Field("numbers", Kind.INT, repeated=True),
        3: Field("name", Kind.NAME),
        4: Field("text", Kind.TEXT),
        5: Field("inner", INNER, repeated=True),
        6: Field("payload", Kind.PAYLOAD),
        7: Field("ratio", Kind.FLOAT),
        8: Field("ratios", Kind.FLOAT, repeated=True),
        9: Refused("a bad thing", "Remove it"),
    },
)


def varint(number: int) -> bytes:
    """The variable-length encoding of an unsigned number."""
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % (1 << 64))


def sized(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def test_decode_returns_values_by_name() -> None:
    """All kinds of fields, repeated ones packed or one by one. Texts are not kept."""
    packed = sized(2, varint(1) + varint((1 << 64) - 2)) + number(2, 3)
    floats = sized(8, struct.pack("<2f", 1, 2)) + varint(8 << 3 | 5) + struct.pack("<f", 3)
    content = number(1, -5) + packed + sized(3, b"a") + sized(4, b"b") + sized(6, b"raw")
    content += sized(5, number(1, 7)) + varint(7 << 3 | 5) + struct.pack("<f", 0.5) + floats
    found = decode(content, OUTER)
    assert bytes(found.pop("payload")) == b"raw"
    assert found == {
        "number": -5,
        "numbers": [1, -2, 3],
        "name": "a",
        "text": "",
        "inner": [{"number": 7}],
        "ratio": 0.5,
        "ratios": [1, 2, 3],
    }
    assert decode(b"", OUTER) == {"numbers": (), "inner": (), "ratios": ()}


def test_decode_does_not_copy_payloads() -> None:
    """A payload is a view of the file."""
    content = sized(6, bytes(1000))
    assert decode(content, OUTER)["payload"].obj is content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (number(77, 1), "Outer has the unknown field 77"),
        (number(9, 1), "Outer has a bad thing"),
        (number(1, 1) * 2, "Outer.number occurs twice"),
        (sized(3, b"a") * 2, "Outer.name occurs twice"),
        (sized(5, number(1, 1) * 2), "Inner.number occurs twice"),
        (sized(6, bytes(9))[:-1], "Outer.payload needs 9 bytes, but only 8 remain"),
        (sized(5, sized(1, b"")), "Inner.number has the wrong wire type 2"),
        (sized(5, b"\x0a\x7f"), "Inner.number needs 127 bytes, but only 0 remain"),
        (sized(1, b""), "Outer.number has the wrong wire type 2"),
        (number(3, 1), "Outer.name has the wrong wire type 0"),
        (number(5, 1), "Outer.inner has the wrong wire type 0"),
        (b"\x0b\x0c", "Outer.number has the wrong wire type 3"),
        (b"\x09" + bytes(8), "Outer.number has the wrong wire type 1"),
        (varint(7 << 3 | 5) + b"abc", "Outer.ratio has the wrong wire type 5, or is incomplete"),
        (sized(8, b"abc"), "Outer.ratios has the wrong wire type"),
        (b"\x08", "not in protobuf's format near byte 1"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "not in protobuf's format near byte 11"),
        (b"\x08" + b"\x80" * 20, "not in protobuf's format near byte 11"),
        (sized(5, number(1, 1 << 31)), "Inner.number is 2147483648, which is not an int32"),
        (sized(3, b"\xff"), "Outer.name is not UTF-8"),
        (sized(4, b"\xff"), "Outer.text is not UTF-8"),
        (sized(3, b"a\nb"), "Outer.name is not printable"),
        (sized(3, bytes(wire.MAX_NAME + 1)), "Outer.name has 1,025 bytes; 1,024 are allowed"),
        (sized(4, bytes(wire.MAX_TEXT + 1)), "Outer.text has 1,048,577 bytes"),
        (sized(5, b"") * (wire.MAX_FIELDS + 1), "more than 524,288 fields"),
        (sized(2, bytes(wire.MAX_FIELDS)), "more than 524,288 fields"),
        (sized(8, bytes(4 * wire.MAX_FIELDS)), "more than 524,288 fields"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_rejects(content: bytes, words: str) -> None:
    """Unknown and repeated fields, wrong lengths and types, and everything above a limit."""
    with pytest.raises(Refusal) as caught:
        decode(content, OUTER)
    assert words in caught.value.what and caught.value.do


def test_decode_limits_all_texts_together() -> None:
    """Many texts that are each short enough."""
    table = Message("Texts", {1: Field("texts", Kind.TEXT, repeated=True)})
    count = wire.MAX_ALL_TEXT // wire.MAX_TEXT
    decode(sized(1, bytes(wire.MAX_TEXT)) * count, table)
    with pytest.raises(Refusal, match="names and texts have more than"):
        decode(sized(1, bytes(wire.MAX_TEXT)) * (count + 1), table)


def test_decode_rejects_every_prefix_that_cuts_a_field() -> None:
    """No length is believed."""
    content = sized(5, number(1, 300)) + sized(6, b"payload")
    whole = {0, len(sized(5, number(1, 300))), len(content)}
    for cut in range(len(content) + 1):
        if cut in whole:
            decode(content[:cut], OUTER)
        else:
            with pytest.raises(Refusal):
                decode(content[:cut], OUTER)
