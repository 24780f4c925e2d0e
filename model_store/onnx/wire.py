"""Decodes protobuf messages without the package protobuf. Unknown fields are rejected.

The bytes are not trusted. Each length is compared with the size of its message before the length is
used. A message can only contain the messages in its table of fields, so the depth of nesting is
limited. Payloads are views of the bytes and are not copied. The size and the number of all other
values are limited. A field that is not repeated may occur only once, because protobuf would merge
several occurrences. The wire format is described at
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Any

MAX_FIELDS = 1 << 19
"""Maximum number of fields in a file. DenseNet-201 quantized to int8 has about 60,000 fields.
Decoding the maximum takes about a second."""
MAX_NAME = 1 << 10
"""Maximum bytes of a name."""
MAX_TEXT = 1 << 20
"""Maximum bytes of a description or of a value in the metadata, such as the list of classes."""
MAX_ALL_TEXT = 1 << 24
"""Maximum bytes of all names and texts in a file. PyTorch writes a stack trace for each node."""

VARINT, LENGTH, FIXED32 = 0, 2, 5
INT_BITS = 64

EXPORT_AGAIN = "Export the network again"
COPY_AGAIN = "Copy the file again, or export the network again"


class Refusal(Exception):
    """The file cannot be used. The code that reads the file adds the path to the message."""

    def __init__(self, what: str, do: str = EXPORT_AGAIN) -> None:
        """
        Args:
            what: What is wrong, and where.
            do: What to do.
        """
        super().__init__(what, do)
        self.what = what
        self.do = do


class Kind(Enum):
    """Kinds of values that are not messages."""

    INT = auto()  # int64
    INT32 = auto()  # int32, or an enumeration
    FLOAT = auto()  # float32
    NAME = auto()  # printable UTF-8
    TEXT = auto()  # UTF-8 that is checked and not kept
    PAYLOAD = auto()  # bytes that are not copied: numbers of a tensor


@dataclass(frozen=True)
class Field:
    """A known field of a message."""

    name: str
    kind: Kind | Message
    repeated: bool = False


@dataclass(frozen=True)
class Refused:
    """A field that ONNX defines and that is rejected."""

    what: str
    do: str = EXPORT_AGAIN


@dataclass(frozen=True)
class Message:
    """A kind of message, with its known fields by number."""

    name: str
    fields: dict[int, Field | Refused] = field(repr=False)

    @cached_property
    def empty(self) -> Decoded:
        """The decoded form of an empty message, which takes little memory."""
        known = [one for one in self.fields.values() if isinstance(one, Field)]
        return {one.name: () for one in known if one.repeated}


Decoded = dict[str, Any]
"""Field name -> value. Repeated fields are sequences and always present. Other fields are present
if they are set."""


def decode(content: bytes, kind: Message) -> Decoded:
    """Decode a message.

    Args:
        content: The bytes of the file. Payloads in the result are views of these bytes.
        kind: Table of the message.

    Raises:
        Refusal: The bytes are not this message, or exceed a limit of this module.
    """
    return _Decoder(content).message(0, len(content), kind)


class _Decoder:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._view = memoryview(content)
        self._fields = 0
        self._text_bytes = 0

    def message(self, at: int, end: int, kind: Message) -> Decoded:
        decoded: Decoded = kind.empty.copy()
        while at < end:
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            known = kind.fields.get(number)
            if known is None:
                raise Refusal(f"{kind.name} has the unknown field {number}", COPY_AGAIN)
            if isinstance(known, Refused):
                raise Refusal(f"{kind.name} has {known.what}", known.do)
            what = f"{kind.name}.{known.name}"
            value, at = self._value(known, wire, at, end, what)
            if known.repeated:
                decoded[known.name] = decoded[known.name] or []
                decoded[known.name] += value
            elif known.name in decoded:
                raise Refusal(f"{what} occurs twice", COPY_AGAIN)
            else:
                decoded[known.name] = value[0]
        return decoded

    def _value(
        self, known: Field, wire: int, at: int, end: int, what: str
    ) -> tuple[list[Any], int]:
        """Return the values of a field, several if they are packed, and the next position."""
        self._count(1)
        kind = known.kind
        if wire == LENGTH:
            size, at = self._varint(at, end)
            if size > end - at:
                raise Refusal(
                    f"{what} needs {size:,} bytes, but only {end - at:,} remain", COPY_AGAIN
                )
            return self._sized(known, at, at + size, what), at + size
        if wire == VARINT and kind in (Kind.INT, Kind.INT32):
            number, at = self._varint(at, end)
            return [_signed(number, kind, what)], at
        if wire == FIXED32 and kind is Kind.FLOAT and end - at >= 4:
            return [*struct.unpack_from("<f", self._content, at)], at + 4
        raise Refusal(f"{what} has the wrong wire type {wire}, or is incomplete", COPY_AGAIN)

    def _sized(self, known: Field, at: int, end: int, what: str) -> list[Any]:
        kind, size = known.kind, end - at
        if isinstance(kind, Message):
            return [self.message(at, end, kind)]
        match kind:
            case Kind.PAYLOAD:
                return [self._view[at:end]]
            case Kind.NAME | Kind.TEXT:
                return [self._text(at, end, kind, what)]
            case Kind.INT if known.repeated:
                return self._packed(at, end, what)
            case Kind.FLOAT if known.repeated and size % 4 == 0:
                self._count(size // 4)
                return [*struct.unpack_from(f"<{size // 4}f", self._content, at)]
        raise Refusal(f"{what} has the wrong wire type {LENGTH}", COPY_AGAIN)

    def _packed(self, at: int, end: int, what: str) -> list[int]:
        numbers = []
        while at < end:
            self._count(1)
            number, at = self._varint(at, end)
            numbers.append(_signed(number, Kind.INT, what))
        return numbers

    def _text(self, at: int, end: int, kind: Kind, what: str) -> str:
        limit = MAX_NAME if kind is Kind.NAME else MAX_TEXT
        if end - at > limit:
            raise Refusal(f"{what} has {end - at:,} bytes; {limit:,} are allowed", "Shorten it")
        self._text_bytes += end - at
        if self._text_bytes > MAX_ALL_TEXT:
            raise Refusal(f"names and texts have more than {MAX_ALL_TEXT:,} bytes", "Remove texts")
        try:
            text = self._content[at:end].decode()
        except UnicodeDecodeError:
            raise Refusal(f"{what} is not UTF-8", COPY_AGAIN) from None
        if kind is Kind.TEXT:
            return ""
        if not text.isprintable():
            raise Refusal(f"{what} is not printable: {text[:40]!r}", "Rename it")
        return text

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the unsigned integer of variable length at `at`, and the position after it."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> INT_BITS:
                    break
                return value, at
            shift += 7
        raise Refusal(f"the file is not in protobuf's format near byte {at:,}", COPY_AGAIN)

    def _count(self, fields: int) -> None:
        self._fields += fields
        if self._fields > MAX_FIELDS:
            raise Refusal(f"the file has more than {MAX_FIELDS:,} fields", "Use a smaller network")


def _signed(number: int, kind: Kind | Message, what: str) -> int:
    signed = number - (1 << INT_BITS) if number >> (INT_BITS - 1) else number
    # Libraries discard the upper bits of an int32, and would read another number.
    if kind is Kind.INT32 and not -(1 << 31) <= signed < 1 << 31:
        raise Refusal(f"{what} is {signed}, which is not an int32", COPY_AGAIN)
    return signed
