"""Mutates images, forms, request heads, JSON and messages with knowledge of their formats.

`segments` cuts data into the pieces of its format, `sizes` finds the places that state a width and
a height, and `repair` corrects checksums and lengths, so that a decoder reads past them.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
import struct
import zlib
from collections.abc import Callable

IMAGES = ("gif", "webp", "png", "jpeg", "bmp")
TEXTS = ("form", "batch", "head", "chunks", "json")
KINDS = (*IMAGES, *TEXTS, "grpc")

EDGES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, -1)
SHAPES = (
    (1, 1), (0, 32), (32, 0), (65535, 65535), (16383, 3906), (16383, 16383), (8000, 8000),
    (65500, 976), (976, 65500), (32000, 2000), (2000, 2000), (4000, 4000), (65535, 1), (1, 65535),
    (64_000_000, 1), (1, 64_000_000),
)  # fmt: skip
TOKENS: dict[str, tuple[bytes, ...]] = {
    "gif": (b"!\xf9\4\x08\0\0\0\0", b"!\xf9\4\x0d\0\0\0\0", b"!\xfe\1c\0",
        b"!\xff\x0bXMP DataXMP\1x\0"),
    "webp": (b"ICCP\0\0\0\0", b"EXIF\0\0\0\0", b"ALPH\1\0\0\0\0\0", b"xxxx\0\0\0\0"),
    "png": tuple(
        struct.pack(">I", len(body)) + name + body + bytes(4)
        for name, body in (
            (b"iCCP", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)),
            (b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)),
            (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(1_000_000), 9)),
            (b"tEXt", b"k\0v"),
            (b"tRNS", bytes(6)),
            (b"PLTE", bytes(768)),
            (b"acTL", struct.pack(">II", 9, 0)),
            (b"eXIf", b"MM\0*\0\0\0\x08\0\0"),
            (b"IDAT", b""),
            (b"prVt", b""),
        )
    ),
    "jpeg": (
        b"\xff\xdd\0\4\0\1", b"\xff\xfe\0\2", b"\xff\xe1\0\x0cExif\0\0MM\0*", b"\xff\xd0",
        b"\xff\xff",
        b"\xff\xe2\0\x10ICC_PROFILE\0\1\1", b"\xff\xc2", b"\xff\xc9", b"\xff\xca",
        b"\xff\xda\0\x08\1\1\0\0\x3f\0", b"\xff\xdb\0\x43\0" + bytes(64),
    ),
    "bmp": (b"\1\1", b"\0\0", b"\0\2\0\0", b"\0\1", b"\xff\xff"),
    "form": (b"--b", b"\r\n", b"--b--\r\n",
        b'Content-Disposition: form-data; name="img"; filename="a"',
             b"\r\n--", b"\r", b"-", b'name="', b";", b"\\\"", b": "),
    "head": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
             b"Expect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n",
             b"Accept: text/html\r\n",
             b"Cookie: a=b; ", b"X: y\r\n", b"Forwarded: for=1;", b"X-Forwarded-For: 1,",
             b"?a=b&", b"%25",
             b"Range: bytes=0-,0-\r\n", b"Authorization: Basic ", b"traceparent: 00-", b"\r\n",
             b"PUT "),
    "chunks": (b"1\r\nx\r\n", b"0\r\n", b";a=b", b"ffffffff\r\n", b"\r\n", b"X: y\r\n",
        b"000000001"),
    "json": (b"[", b"]", b"{", b"}", b'"', b"\\u0041", b"\\", b"1e300", b"-", b"9", b"null", b",",
        b":",
             b'"inputs":', b'"data":', b'"outputs":[{"name":"class"}]', b'"parameters":{"a":[1]}',
             b"[]", b'""'),
    "grpc": (b"\x2a\0", b"\x22\0", b"\x32\0", b"\x3a\0", b"\x42\0", b"\0",
        b"\xff\xff\xff\xff\x0f", b"\x0a\1a"),
}  # fmt: skip
TOKENS["batch"] = TOKENS["form"]
_CUTS = {
    "form": rb"(\r\n|--b|[:;\"=])",
    "head": rb"(\r\n|[ :/?&;,=])",
    "chunks": rb"(\r\n)",
    "json": rb'([\[\]{},:]|"[^"]*"|\d+)',
}
_CUTS["batch"] = _CUTS["form"]
_SIGNATURE = 8


def segments(kind: str, data: bytes) -> list[bytes]:
    """Cuts `data` into pieces. Joined, they are `data`."""
    if kind in _CUTS:
        return [piece for piece in re.split(_CUTS[kind], data) if piece]
    ends = _ENDS[kind](data) if kind in _ENDS else list(range(0, len(data), 16))
    ends = sorted({0, len(data), *(end for end in ends if 0 < end < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def _png_ends(data: bytes) -> list[int]:
    ends, at = [_SIGNATURE], _SIGNATURE
    while at + 8 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        ends.append(at)
    return ends


def _webp_ends(data: bytes) -> list[int]:
    ends, at = [12], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
        ends.append(at)
    return ends


def _jpeg_ends(data: bytes) -> list[int]:
    ends, at = [2], 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        ends.append(at)
        at += 2
        if marker not in (0, 0xFF, 1) and not 0xD0 <= marker <= 0xD9:
            at += int.from_bytes(data[at : at + 2], "big")
            ends.append(at)
    return ends


def _gif_ends(data: bytes) -> list[int]:
    """Returns each block with its sub-blocks."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 128 else 0)
    ends = [6, 13, at]
    while at < len(data):
        if data[at] == 0x21:
            at += 2
        elif data[at] == 0x2C and at + 10 <= len(data):
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 128 else 0)
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        ends.append(at)
    return ends


def _bmp_ends(data: bytes) -> list[int]:
    start = int.from_bytes(data[10:14], "little")
    return [14, 14 + int.from_bytes(data[14:18], "little"), *range(start, len(data), 64)]


_ENDS: dict[str, Callable[[bytes], list[int]]] = {
    "png": _png_ends,
    "webp": _webp_ends,
    "jpeg": _jpeg_ends,
    "gif": _gif_ends,
    "bmp": _bmp_ends,
}

_WEBP = {b"VP8X": (12, "24"), b"VP8L": (9, "14"), b"VP8 ": (14, "<HH"), b"ANMF": (14, "24")}
"""Chunk that states a size -> offset and encoding of the size."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that a size follows."""
Place = tuple[int, str]
"""Offset of a size, and how its width and height are written."""


def sizes(kind: str, data: bytes) -> list[Place]:
    """Returns the places where an image states the size of itself, its canvas and its frames."""
    if kind == "png":
        return [(16, ">II")] if len(data) >= 24 else []
    if kind == "bmp":
        return [(18, "<ii")] if len(data) >= 26 else []
    at, found = 0, []
    for piece in segments(kind, data):
        if kind == "gif":
            if at == 6 and len(piece) >= 4:
                found.append((6, "<HH"))
            elif piece[:1] == b"," and len(piece) >= 9:
                found.append((at + 5, "<HH"))
        elif kind == "jpeg":
            if piece[:1] == b"\xff" and len(piece) >= 9 and piece[1] in _FRAMES:
                found.append((at + 5, ">HH reversed"))
        elif kind == "webp":
            name = piece[:4]
            if name in _WEBP and len(piece) >= _WEBP[name][0] + 6:
                found.append((at + _WEBP[name][0], _WEBP[name][1]))
        at += len(piece)
    return found


_OPTIONS: dict[str, dict[bytes, tuple[int, ...]]] = {
    "gif": {b"!\xf9": (3,), b",": (9,)},
    "webp": {b"VP8X": (8,), b"VP8L": (12,), b"ALPH": (8,), b"ANMF": (23,)},
    "jpeg": {bytes([0xFF, frame]): (1, 4, 9, 11, 14, 17) for frame in _FRAMES}
    | {b"\xff\xdd": (5,), b"\xff\xda": (4, 6, 8)},
}
"""Beginning of a piece -> offsets of bytes that select an encoding."""
_FIXED_OPTIONS = {"gif": (10,), "png": (24, 25, 28), "bmp": (28, 30)}


def options(kind: str, data: bytes) -> list[int]:
    """Returns the offsets of bytes that select an encoding: depth, disposal, interlacing and
    others."""
    found = [at for at in _FIXED_OPTIONS.get(kind, ()) if at < len(data)]
    begin = 0
    for piece in segments(kind, data):
        for signature, offsets in _OPTIONS.get(kind, {}).items():
            if piece.startswith(signature):
                found += [begin + offset for offset in offsets if offset < len(piece)]
        begin += len(piece)
    return found


def size_at(data: bytes, place: Place) -> tuple[int, int]:
    """Returns the width and the height at `place`."""
    at, form = place
    if form == "24":
        first, second = (int.from_bytes(data[at + n : at + n + 3], "little") for n in (0, 3))
        return first + 1, second + 1
    if form == "14":
        (both,) = struct.unpack_from("<I", data, at)
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    first, second = struct.unpack_from(form.split()[0], data, at)
    return (second, first) if form.endswith("reversed") else (first, second)


def resize(data: bytes, place: Place, width: int, height: int) -> bytes:
    """Returns `data` with another size at `place`, as far as it can be written there."""
    at, form = place
    changed = bytearray(data)
    if form == "24":
        for offset, value in ((0, width), (3, height)):
            number = max(0, value - 1) & 0xFFFFFF
            changed[at + offset : at + offset + 3] = number.to_bytes(3, "little")
    elif form == "14":
        (old,) = struct.unpack_from("<I", changed, at)
        low, high = max(0, min(width, 16384) - 1), max(0, min(height, 16384) - 1)
        struct.pack_into("<I", changed, at, old & 0xF0000000 | high << 14 | low)
    elif form.endswith("reversed"):
        struct.pack_into(">HH", changed, at, min(height, 65535), min(width, 65535))
    else:
        most = 0x7FFFFFFF if form in (">II", "<ii") else 0xFFFF
        struct.pack_into(form, changed, at, min(width, most), min(height, most))
    return bytes(changed)


def repair(kind: str, data: bytes) -> bytes:
    """Corrects checksums and lengths."""
    if kind == "png":
        return b"".join(_checked(piece) for piece in segments(kind, data))
    if kind == "webp" and len(data) >= 12:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data


def _checked(piece: bytes) -> bytes:
    """Returns a PNG chunk with its checksum."""
    if len(piece) < 12 or piece.startswith(b"\x89PNG"):
        return piece
    return piece[:-4] + struct.pack(">I", zlib.crc32(piece[4:-4]))


@functools.lru_cache(64)
def deflated_zeros(power: int) -> bytes:
    """Deflates 2 ** `power` zeros."""
    packer, piece = zlib.compressobj(9), bytes(1 << min(power, 20))
    packed = [packer.compress(piece) for _ in range(1 << max(0, power - 20))]
    return b"".join([*packed, packer.flush()])


class Mutator:
    """Generates mutants of at most `largest` bytes."""

    def __init__(self, dice: random.Random, largest: int) -> None:
        self._dice = dice
        self._largest = largest
        self._usual = [
            self._repeat, self._delete, self._swap, self._insert, self._splice, self._edge,
            self._bits, self._run, self._truncate,
        ]  # fmt: skip

    def mutate(self, kind: str, data: bytes, other: bytes) -> bytes:
        """Returns a mutant of `data`, which may contain pieces of `other`, an input of the same
        kind."""
        changes = [*self._usual]
        if kind in IMAGES:
            changes += [self._size] * 4 + [self._option] * 3
        if kind == "png":
            changes += [self._inflate] * 3
        for _ in range(1 + min(6, int(self._dice.expovariate(0.7)))):
            change = self._dice.choice(changes)
            data = change(kind, data, other)[: self._largest]
        return data if self._dice.random() < 0.05 else repair(kind, data)

    def _count(self, most: float) -> int:
        """Returns a number from 1 to `most`; each order of magnitude is equally likely."""
        return int(math.exp(self._dice.uniform(0, math.log(max(1.0, most)))))

    def _range(self, pieces: list[bytes]) -> tuple[int, int]:
        begin = self._dice.randrange(len(pieces)) if pieces else 0
        return begin, min(len(pieces), begin + self._count(min(8, len(pieces) or 1)))

    def _repeat(self, kind: str, data: bytes, other: bytes) -> bytes:
        pieces = segments(kind, data)
        begin, end = self._range(pieces)
        piece = b"".join(pieces[begin:end])
        times = self._count((self._largest - len(data)) / max(1, len(piece)))
        return b"".join([*pieces[:begin], piece * times, *pieces[begin:]])

    def _delete(self, kind: str, data: bytes, other: bytes) -> bytes:
        pieces = segments(kind, data)
        begin, end = self._range(pieces)
        return b"".join(pieces[:begin] + pieces[end:]) or data

    def _swap(self, kind: str, data: bytes, other: bytes) -> bytes:
        pieces = segments(kind, data)
        if len(pieces) > 1:
            a, b = self._dice.sample(range(len(pieces)), 2)
            pieces[a], pieces[b] = pieces[b], pieces[a]
        return b"".join(pieces)

    def _insert(self, kind: str, data: bytes, other: bytes) -> bytes:
        pieces = segments(kind, data)
        token = self._dice.choice(TOKENS[kind])
        if self._dice.random() < 0.3:
            token *= self._count(self._largest / len(token))
        pieces.insert(self._dice.randrange(len(pieces) + 1), token)
        return b"".join(pieces)

    def _splice(self, kind: str, data: bytes, other: bytes) -> bytes:
        pieces, others = segments(kind, data), segments(kind, other)
        begin, end = self._range(pieces)
        first, last = self._range(others)
        return b"".join(pieces[:begin] + others[first:last] + pieces[end:])

    def _edge(self, kind: str, data: bytes, other: bytes) -> bytes:
        """Writes an extreme number somewhere, more often near the beginning of a piece."""
        if not data:
            return data
        width = self._dice.choice((1, 1, 2, 3, 4))
        at = self._dice.randrange(len(data))
        if self._dice.random() < 0.7:
            pieces = segments(kind, data)
            chosen = self._dice.randrange(len(pieces))
            at = sum(map(len, pieces[:chosen])) + self._dice.randrange(min(24, len(pieces[chosen])))
        value = self._dice.choice(EDGES) & (1 << 8 * width) - 1
        number = value.to_bytes(width, self._dice.choice(("big", "little")))
        return data[:at] + number + data[at + width :]

    def _bits(self, kind: str, data: bytes, other: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self._count(8) if data else 0):
            changed[self._dice.randrange(min(len(data), self._count(len(data))))] ^= (
                1 << self._dice.randrange(8)
            )
        return bytes(changed)

    def _run(self, kind: str, data: bytes, other: bytes) -> bytes:
        at = self._dice.randrange(len(data) + 1)
        byte = self._dice.choice((0, 0, 0xFF, 0x20, self._dice.randrange(256)))
        return data[:at] + bytes([byte]) * self._count(self._largest - len(data)) + data[at:]

    def _truncate(self, kind: str, data: bytes, other: bytes) -> bytes:
        return data[: self._count(len(data))]

    def _size(self, kind: str, data: bytes, other: bytes) -> bytes:
        """Writes another size, in one place or in all places."""
        places = sizes(kind, data)
        if not places:
            return data
        shape = self._dice.choice(SHAPES)
        if self._dice.random() < 0.3:
            shape = self._count(65535), self._count(65535)
        for place in places if self._dice.random() < 0.5 else [self._dice.choice(places)]:
            data = resize(data, place, *shape)
        return data

    def _option(self, kind: str, data: bytes, other: bytes) -> bytes:
        """Changes one byte that selects an encoding, mostly to a small number."""
        offsets = options(kind, data)
        if not offsets:
            return data
        changed = bytearray(data)
        changed[self._dice.choice(offsets)] = self._dice.randrange(self._dice.choice((16, 256)))
        return bytes(changed)

    def _inflate(self, kind: str, data: bytes, other: bytes) -> bytes:
        """Adds zeros to a deflated chunk of a PNG."""
        pieces = segments(kind, data)
        heads = {b"IDAT": 0, b"iCCP": 3, b"zTXt": 3, b"iTXt": 6, b"fdAT": 4}
        chosen = [number for number, piece in enumerate(pieces) if piece[4:8] in heads]
        if not chosen:
            return data
        number = self._dice.choice(chosen)
        name = pieces[number][4:8]
        body = pieces[number][8 : 8 + heads[name]] + deflated_zeros(self._dice.randrange(8, 30))
        pieces[number] = struct.pack(">I", len(body)) + name + body + bytes(4)
        return b"".join(pieces)
