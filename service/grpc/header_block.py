"""Collects and checks the header block of a stream, which contains the compressed headers.

gRPC's server decompresses a header block before it checks the size of the headers. One byte of the
block can stand for a whole header field, and each field takes up to 130 bytes in gRPC's server. So
the number of fields is limited before gRPC's server receives the block. The fields are counted
without decompressing them (RFC 7541, section 6).

gRPC's server decodes the name of the method as UTF-8. In grpcio 1.84 and later, a name that is not
UTF-8 ends gRPC's server. So all names and values must be printable ASCII characters, as gRPC's
specification requires (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). Clients
send binary values in base64.
"""

from __future__ import annotations

import re

from service.grpc import huffman
from service.grpc.http2_frames import END_HEADERS, END_STREAM, HEADERS, BadFrame, frame

HEAD_BYTES = 8 * 1024
"""Maximum number of bytes of a compressed header block."""
MAX_FIELDS = 64
"""Maximum number of fields of a header block. A usual call has about 10."""
_PADDED, _PRIORITY = 0x8, 0x20
_PRIORITY_BYTES = 5
_MAX_INTEGER_BYTES = 4
"""Maximum number of bytes of an integer in a header block."""
_HUFFMAN = 0x80
"""Bit in the first byte of a string. If it is set, the string is in HPACK's Huffman code."""
_PRINTABLE = re.compile(rb"[ -~]*")


class HeaderBlock:
    """A header block that arrives in a HEADERS frame and any number of CONTINUATION frames."""

    def __init__(self, number: int, flags: int, payload: bytes) -> None:
        """
        Args:
            number: Stream number.
            flags: Flags of the HEADERS frame.
            payload: Payload of the HEADERS frame. Its padding and priority are discarded.

        Raises BadFrame if the payload is too long, or shorter than its padding and priority.
        """
        self.number = number
        self.ends_stream = bool(flags & END_STREAM)
        """Whether the client ends the stream with this block."""
        self._data = b""
        self.add(_without_padding(flags, payload))

    def add(self, payload: bytes) -> None:
        """Add the payload of a CONTINUATION frame. Raises BadFrame if the block is too long."""
        if len(self._data) + len(payload) > HEAD_BYTES:
            raise BadFrame(f"a header block is longer than {HEAD_BYTES} bytes")
        self._data += payload

    def check(self) -> None:
        """Raise BadFrame if the block is not valid.

        A valid block has at most `MAX_FIELDS` fields, all of them complete, and its names and
        values are printable ASCII characters.
        """
        at = fields = 0
        while at < len(self._data):
            at = _end_of_field(self._data, at)
            fields += 1
            if fields > MAX_FIELDS:
                raise BadFrame(f"a header block has more than {MAX_FIELDS} fields")

    def encode(self, added: bytes = b"") -> bytes:
        """Encode the block as one HEADERS frame. `added`: encoded fields to append to the block."""
        flags = END_HEADERS | (END_STREAM if self.ends_stream else 0)
        return frame(HEADERS, flags, self.number, self._data + added)


def _without_padding(flags: int, payload: bytes) -> bytes:
    """Return the part of a HEADERS frame that belongs to the block (RFC 9113, section 6.2)."""
    begin, end = 0, len(payload)
    if flags & _PADDED:
        begin, end = 1, end - int.from_bytes(payload[:1], "big")
    if flags & _PRIORITY:
        begin += _PRIORITY_BYTES
    if begin > end:
        raise BadFrame("a HEADERS frame is shorter than its padding and priority")
    return payload[begin:end]


def _end_of_field(block: bytes, at: int) -> int:
    """Return the position after the field that starts at `at`. Raises BadFrame.

    The result is greater than the length of the block if the block ends within the field.
    """
    first = block[at]
    if first & 0x80:  # name and value are in a table
        return _integer(block, at, 7)[1]
    if first & 0xE0 == 0x20:  # dynamic table size update, which is not a field
        return _integer(block, at, 5)[1]
    name_index, at = _integer(block, at, 6 if first & 0x40 else 4)
    # Skip the name, unless it is indexed, and then the value.
    for _ in range(1 if name_index else 2):
        at = _end_of_string(block, at)
    return at


def _end_of_string(block: bytes, at: int) -> int:
    """Check the string at position `at`, and return the position after it. Raises BadFrame."""
    size, begin = _integer(block, at, 7)
    end = begin + size
    if end > len(block):
        raise BadFrame(_CUT)
    string = block[begin:end]
    is_printable = huffman.is_printable if block[at] & _HUFFMAN else _PRINTABLE.fullmatch
    if not is_printable(string):
        raise BadFrame("a header has a character that is not printable ASCII")
    return end


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the integer at position `at`, and the position after it (RFC 7541, section 5.1).

    `bits`: number of bits of the first byte that belong to the integer.
    """
    maximum = (1 << bits) - 1
    if at >= len(block):
        raise BadFrame(_CUT)
    if (value := block[at] & maximum) < maximum:
        return value, at + 1
    for position, byte in enumerate(block[at + 1 : at + _MAX_INTEGER_BYTES]):
        value += (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 2
    raise BadFrame(_CUT)


_CUT = "a header block ends within a field, or has a number that is too large"
