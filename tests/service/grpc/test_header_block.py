"""Tests the limits of header blocks."""

from __future__ import annotations

import pytest

from service.grpc.header_block import HEAD_BYTES, MAX_FIELDS, HeaderBlock
from service.grpc.http2_frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    BadFrame,
    field,
    frame,
)

PADDED, PRIORITY = 0x8, 0x20
INDEXED = b"\xbe"
"""A field whose name and value are both in the table."""
FIELDS = {
    "name and value in the table": INDEXED,
    "large index": b"\xff\x80\x7f",
    "name in the table, value added": b"\x41\x02ok",
    "large index of a name": b"\x7f\x80\x01\x02ok",
    "name and value added": b"\x40\x01a\x02ok",
    "not added": b"\0\x01a\x02ok",
    "never added": b"\x10\x01a\x02ok",
    "name in the table, not added": b"\x0f\x20\x02ok",
    "Huffman code": b"\0\x81\x1f\x82\x1c\x7f",
    "long value": b"\0\x01a\x7f\x91\x01" + 272 * b"v",
    "size of the table": b"\x2f",
    "large size of the table": b"\x3f\xe1\x1f",
}


@pytest.mark.parametrize("one", FIELDS.values(), ids=FIELDS)
def test_header_block_counts_fields_of_each_kind(one: bytes) -> None:
    """A block may have `MAX_FIELDS` fields of each kind, but not one more."""
    size = HEAD_BYTES // len(one)
    HeaderBlock(1, 0, min(MAX_FIELDS, size) * one).check()
    with pytest.raises(BadFrame, match=f"more than {MAX_FIELDS} fields"):
        HeaderBlock(1, 0, (MAX_FIELDS - 1) * INDEXED + one + INDEXED).check()


@pytest.mark.parametrize("one", FIELDS.values(), ids=FIELDS)
def test_header_block_must_end_with_a_field(one: bytes) -> None:
    """A block that ends within a field of any kind is rejected. So a client cannot make an added
    field a part of its own last field."""
    for size in range(1, len(one)):
        with pytest.raises(BadFrame, match="ends within a field"):
            HeaderBlock(1, 0, INDEXED + one[:size]).check()


@pytest.mark.parametrize("kind", [b"\0", b"\x10", b"\x40"])
@pytest.mark.parametrize("character", ["\0", "\n", "\x1f", "\x7f", "\x83", "\u20ac"])
def test_header_block_must_be_printable(kind: bytes, character: str) -> None:
    """Names and values in every kind of field are printable ASCII, with and without Huffman
    code. Other characters in the name of a method end gRPC's server."""
    wrong = character.encode("latin-1" if character == "\x83" else "utf-8")
    fields = [
        kind + string(b":path") + string(b"/" + wrong),
        kind + string(b"x-" + wrong) + string(b"1"),
        bytes((kind[0] | 4,)) + string(b"/" + wrong),  # the static table has the name ":path"
    ]
    for one in fields:
        with pytest.raises(BadFrame, match="not printable ASCII"):
            HeaderBlock(1, 0, INDEXED + one).check()
    HeaderBlock(1, 0, kind + string(b":path") + string(bytes(range(0x20, 0x7F)))).check()


@pytest.mark.parametrize("wrong", [b"\xff\xff\xff\xff", b"\xff\xc7", b"\xff"])
def test_header_block_must_be_printable_in_huffman_code(wrong: bytes) -> None:
    """A string in Huffman code is decoded to check it: the bytes of the code are any bytes."""
    HeaderBlock(1, 0, b"\x04\x82\x60\x7f").check()
    with pytest.raises(BadFrame, match="not printable ASCII"):
        HeaderBlock(1, 0, b"\x04" + bytes((0x80 | len(wrong),)) + wrong).check()


def string(text: bytes) -> bytes:
    return bytes((len(text),)) + text


def test_header_block_with_a_huge_number_is_rejected() -> None:
    """The number of bytes of one integer is limited."""
    with pytest.raises(BadFrame, match="number that is too large"):
        HeaderBlock(1, 0, b"\xff" + 4 * b"\x80" + b"\1").check()


def test_header_block_limits_the_bytes_of_all_frames() -> None:
    """A block may arrive in several frames, which have at most `HEAD_BYTES` together."""
    block = HeaderBlock(1, 0, bytes(HEAD_BYTES - 1))
    block.add(b"x")
    with pytest.raises(BadFrame, match="longer than 8192 bytes"):
        block.add(b"x")
    with pytest.raises(BadFrame, match="longer than 8192 bytes"):
        HeaderBlock(1, 0, bytes(HEAD_BYTES + 1))


@pytest.mark.parametrize(
    ("flags", "payload"),
    [
        (0, INDEXED),
        (PADDED, b"\2" + INDEXED + bytes(2)),
        (PRIORITY, bytes(5) + INDEXED),
        (PADDED | PRIORITY, b"\1" + bytes(5) + INDEXED + bytes(1)),
    ],
)
def test_header_block_is_encoded_as_one_frame(flags: int, payload: bytes) -> None:
    """The frame has the fields of the block and the added one, without padding and priority."""
    block = HeaderBlock(3, flags | END_STREAM, payload)
    block.add(INDEXED)
    block.check()
    name = field("a", "b")
    ends = END_HEADERS | END_STREAM
    assert block.encode(added=name) == frame(HEADERS, ends, 3, 2 * INDEXED + name)
    assert HeaderBlock(3, flags, payload).encode() == frame(HEADERS, END_HEADERS, 3, INDEXED)


@pytest.mark.parametrize(
    ("flags", "payload"),
    [(PADDED, b""), (PADDED, b"\1"), (PRIORITY, bytes(4)), (PADDED | PRIORITY, b"\1" + bytes(5))],
)
def test_header_block_without_room_for_its_padding_is_rejected(flags: int, payload: bytes) -> None:
    """A HEADERS frame must contain the padding and the priority that it announces."""
    with pytest.raises(BadFrame, match="shorter than its padding and priority"):
        HeaderBlock(1, flags, payload)
