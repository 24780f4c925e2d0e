"""Tests which strings in Huffman code are printable."""

from __future__ import annotations

import pytest

from service.grpc.huffman import is_printable

CODES = {
    "\x00": (0x1FF8, 13),
    "\x7f": (0xFFFFFFC, 28),
    "\x83": (0x3FFFDA, 22),
    "\xc3": (0x7FFF1, 19),
    "\xff": (0x3FFFFEE, 26),
    "end of string": (0x3FFFFFFF, 30),
}
"""Codes of appendix B of RFC 7541 that are not printable ASCII, and their numbers of bits."""
A = "00011"
"""The code of the letter a."""


def padded(bits: str) -> bytes:
    bits += "1" * (-len(bits) % 8)
    return int(f"1{bits}", 2).to_bytes(len(bits) // 8 + 1, "big")[1:]


@pytest.mark.parametrize(
    "code",
    [
        "",
        "f1e3c2e5f23a6ba0ab90f4ff",  # www.example.com
        "a8eb10649cbf",  # no-cache
        "d07abe941054d444a8200595040b8166e082a62d1bff",  # Mon, 21 Oct 2013 20:13:21 GMT
        "9d29ad171863c78f0b97c8e9ae82ae43d3",  # https://www.example.com
        "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
    ],
)
def test_examples_of_the_specification_are_printable(code: str) -> None:
    """The examples of RFC 7541 (appendix C) are printable."""
    assert is_printable(bytes.fromhex(code))


@pytest.mark.parametrize("code", CODES.values(), ids=map(repr, CODES))
def test_other_characters_are_not_printable(code: tuple[int, int]) -> None:
    """A character that is not printable ASCII is found at any position in a byte."""
    value, size = code
    for before in range(8):
        for after in range(3):
            assert is_printable(padded(before * A + after * A))
            assert not is_printable(padded(before * A + f"{value:0{size}b}" + after * A))


def test_padding_is_shorter_than_a_byte() -> None:
    """At most 7 bits follow the last character, and all of them are 1."""
    assert is_printable(padded(5 * A)), "7 bits"
    assert is_printable(b"\xf8"), "the code of & has 8 bits"
    assert not is_printable(b"\xf8\xff")
    assert not is_printable(bytes((0b00011000,)))
