"""Checks strings in HPACK's Huffman code (RFC 7541, section 5.2 and appendix B).

The code is canonical: codes of the same number of bits follow each other in the order of their
characters, and shorter codes precede longer codes. So the numbers of bits define all codes. The
table below has all codes of up to 15 bits, and the first code of 19 bits. All characters with
longer codes are not printable ASCII.
"""

from __future__ import annotations

_CHARACTERS = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
    19: "\\",
}
"""Maps each number of bits to the characters whose codes have this number of bits."""
_MAX_PADDING = 7
"""Maximum number of bits after the last character. All these bits are 1."""
_Step = tuple[int, ...]
"""Next states of a state, by the next 4 bits."""


def is_printable(data: bytes) -> bool:
    """Whether `data` is the Huffman code of a string of printable ASCII characters."""
    state = _START
    for byte in data:
        state = _STEPS[_STEPS[state][byte >> 4]][byte & 0xF]
    return state in _ENDS


def _codes() -> set[str]:
    """Return the codes of all printable ASCII characters, as strings of 0 and 1."""
    codes, code, before = set(), 0, 0
    for bits, characters in _CHARACTERS.items():
        code <<= bits - before
        before = bits
        for character in characters:
            if character.isprintable():
                codes.add(f"{code:0{bits}b}")
            code += 1
    return codes


def _automaton() -> tuple[list[_Step], int, set[int]]:
    """Return the next states of each state, the first state, and the states at the end of a string.

    A state is the beginning of a code: the bits since the end of the last character. One more state
    stands for a string that is not printable.
    """
    codes = _codes()
    beginnings = sorted({code[:size] for code in codes for size in range(len(code))})
    numbers = {beginning: number for number, beginning in enumerate(beginnings)}
    failed = len(beginnings)

    def next_state(beginning: str, bits: str) -> int:
        for bit in bits:
            beginning += bit
            if beginning in codes:
                beginning = ""
            elif beginning not in numbers:
                return failed
        return numbers[beginning]

    nibbles = [f"{nibble:04b}" for nibble in range(16)]
    steps = [tuple(next_state(beginning, bits) for bits in nibbles) for beginning in beginnings]
    ends = {numbers["1" * size] for size in range(_MAX_PADDING + 1)}
    return [*steps, (failed,) * 16], numbers[""], ends


_STEPS, _START, _ENDS = _automaton()
