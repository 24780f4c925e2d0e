"""The images in a form: multipart/form-data (RFC 7578), parsed by python-multipart as it arrives.

Only the bytes of parts named `img` are kept. Other parts are passed over.
"""

from __future__ import annotations

import functools
import io
import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from service.errors import MissingImage

FIELD = b"img"
MAX_OTHERS = 63
MAX_PARAMETERS = 1024
"""Of the headers of all parts, and of Content-Type: each takes a microsecond."""
MAX_BOUNDARY = 70
"""Bytes (RFC 2046, section 5.1.1)."""
_USUAL_FORM = re.compile(r"multipart/form-data; boundary=([\w'+.-]{1,70})", re.ASCII)
_ONLY_HEAD = re.compile(
    rb'\r\ncontent-disposition: form-data; name="(?-i:img)"(?:; filename="[^"\\\r\n]*")?\r\n'
    rb"(?:content-(?:type|length): [\w/.+-]+\r\n)*\r\n",
    re.IGNORECASE,
)
HOW = "Send multipart/form-data with a file in the field 'img': curl -F img=@photo.jpg URL"
TOO_MANY_PARTS = (
    f"The form has more than {MAX_OTHERS} parts beside images, or its boundary within its data. "
    f"{HOW}."
)


def boundary(content_type: str) -> bytes:
    """Of the form that a Content-Type announces. Raises MissingImage."""
    if usual := _USUAL_FORM.fullmatch(content_type):
        return usual[1].encode()
    if content_type.count(";") > MAX_PARAMETERS:
        raise MissingImage(
            f"The request's Content-Type has more than {MAX_PARAMETERS:,} parameters. {HOW}."
        )
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MissingImage(
            f"The request holds no image. {HOW}. To /predict, an image may also be the body "
            "itself, with Content-Type: image/jpeg, image/png or the like."
        )
    found = options.get(b"boundary")
    if not found:
        raise MissingImage(f"The form's Content-Type names no boundary. {HOW}.")
    if len(found) > MAX_BOUNDARY:
        raise MissingImage(
            f"The form's boundary has {len(found):,} bytes, and {MAX_BOUNDARY} are allowed "
            f"(RFC 2046). {HOW}."
        )
    return found


class _Enough(Exception):
    """The last image that is wanted is complete."""


class Form:
    """Keeps the parts named `img`, of which `most` are enough, and forgets the rest."""

    def __init__(self, boundary: bytes, length: int, most: int) -> None:
        """`length`: of the whole body, where it is known; else -1."""
        self._boundary = boundary
        self._length = length
        self._most = most
        self._images: list[bytes] = []
        self._begun = False
        self._delimiters = 0

    def write(self, chunk: bytes) -> None:
        """Raises MissingImage where this is no form, or has no end of parts."""
        if len(self._images) >= self._most:
            return  # nothing after the last image matters
        if len(chunk) == self._length and (image := only_part(chunk, self._boundary)) is not None:
            self._images.append(image)
            return
        if not self._begun:
            # The parser would also pass over what follows them, as far as this chunk goes.
            chunk = chunk.lstrip(b"\r\n")
            self._begun = bool(chunk)
        try:
            self._parse(chunk)
        except _Enough:
            pass
        except FormParserError as error:
            raise MissingImage(f"The form cannot be read: {error}. {HOW}.") from error

    def images(self) -> list[bytes]:
        """At least one; any of them may be empty. Raises MissingImage."""
        if not self._images:
            raise MissingImage(f"The form has no complete field 'img'. {HOW}.")
        return self._images

    def _parse(self, chunk: bytes) -> None:
        """The parser goes byte by byte through a delimiter that is none after all, and through the
        padding behind one (RFC 2046, section 5.1.1). So there may be as many delimiters as parts,
        and the parser is not shown the padding."""
        delimiter = b"\r\n--" + self._boundary
        start = 0
        while start < len(chunk):
            found = chunk.find(delimiter, start)
            end = found + len(delimiter) + 1 if found >= 0 else len(chunk)
            piece = chunk[start:end]
            if self._parser.state == MultipartState.BOUNDARY_PADDING and not self._parser.index:
                piece = piece.lstrip(b" \t")
            self._parser.write(piece)
            start = end
            self._delimiters += found >= 0
            if self._delimiters > MAX_OTHERS + self._most + 1:
                raise MissingImage(TOO_MANY_PARTS)

    @functools.cached_property
    def _parser(self) -> MultipartParser:
        parts = _Parts(self._images, self._most)
        return MultipartParser(
            self._boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
            },
        )


class _Parts:
    """What the parser tells of. It does not know the parser: they would keep each other, and what
    they hold of a body, until garbage is collected."""

    def __init__(self, images: list[bytes], most: int) -> None:
        self._images = images
        self._most = most
        self._image = io.BytesIO()
        self._name = self._value = b""
        self._parameters = 0
        self._parts = 0
        self._is_image = False

    def begin(self) -> None:
        self._is_image = False
        self._parts += 1
        # 10 MiB of empty parts would keep the loop for seconds
        if self._parts > MAX_OTHERS + self._most:
            raise MissingImage(TOO_MANY_PARTS)

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._parameters += self._value.count(b";")
            if self._parameters > MAX_PARAMETERS:
                raise MissingImage(
                    f"The headers of the form's parts have more than {MAX_PARAMETERS:,} "
                    f"parameters. {HOW}."
                )
            self._is_image = parse_options_header(self._value)[1].get(b"name") == FIELD
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self._image.write(memoryview(data)[start:end])

    def end(self) -> None:
        if self._is_image:
            self._images.append(self._image.getvalue())
            self._image = io.BytesIO()
            if len(self._images) == self._most:
                raise _Enough


def only_part(body: bytes, boundary: bytes) -> bytes | None:
    """The image of a form that is whole and has it as its only part, as most have: what the parser
    would find, in a fifth of the time. None: the parser's to judge."""
    delimiter = b"--" + boundary
    end = body.find(b"\r\n" + delimiter, len(delimiter))
    if end < 0 or body[end + 2 + len(delimiter) :] not in (b"--\r\n", b"--"):
        return None
    head = _ONLY_HEAD.match(body, len(delimiter), end)
    return body[head.end() : end] if head and body.startswith(delimiter) else None
