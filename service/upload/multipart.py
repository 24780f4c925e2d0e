"""Parses the bodies of forms (multipart/form-data, RFC 7578) as they arrive.

Only the parts named `img` are kept; other parts are skipped. The parser is python-multipart. The
number of parts, parameters and delimiters is limited, because malicious forms could otherwise block
the event loop.
"""

from __future__ import annotations

import functools
import io
import re

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from service.errors import MissingImage

FIELD = b"img"
"""Name of the parts with images."""
MAX_OTHERS = 63
"""Maximum number of parts that are not images."""
MAX_PARAMETERS = 1024
"""Maximum number of parameters in the headers of all parts, and in the Content-Type of the request.
Parsing a parameter takes a microsecond."""
MAX_BOUNDARY = 70
"""Maximum length of a boundary in bytes (RFC 2046, section 5.1.1)."""
_USUAL_FORM = re.compile(r"multipart/form-data; boundary=([\w'+.-]{1,70})", re.ASCII)
_HEAD_OF_ONLY_PART = re.compile(
    rb'\r\ncontent-disposition: form-data; name="(?-i:img)"(?:; filename="[^"\\\r\n]*")?\r\n'
    rb"(?:content-(?:type|length): [\w/.+-]+\r\n)*\r\n",
    re.IGNORECASE,
)
HOW = "Send multipart/form-data with a file in the field 'img': curl -F img=@photo.jpg URL"
TOO_MANY_PARTS = (
    f"The form has more than {MAX_OTHERS} parts besides images, or contains the boundary as data. "
    f"{HOW}."
)


def boundary(content_type: str) -> bytes:
    """Return the boundary in the Content-Type header of a form.

    Raises MissingImage if the header has another media type, or has no valid boundary.
    """
    if usual := _USUAL_FORM.fullmatch(content_type):
        return usual[1].encode()
    if content_type.count(";") > MAX_PARAMETERS:
        raise MissingImage(
            f"The Content-Type of the request has more than {MAX_PARAMETERS:,} parameters. {HOW}."
        )
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MissingImage(
            f"The request has no image. {HOW}. For /predict the body may also be the image itself, "
            "with a Content-Type such as image/jpeg or image/png."
        )
    found = options.get(b"boundary")
    if not found:
        raise MissingImage(f"The Content-Type of the form has no boundary. {HOW}.")
    if len(found) > MAX_BOUNDARY:
        raise MissingImage(
            f"The boundary of the form has {len(found):,} bytes; the maximum is {MAX_BOUNDARY} "
            f"(RFC 2046). {HOW}."
        )
    return found


class _Enough(Exception):
    """Stops the parser, because the last image to keep is complete."""


class Form:
    """Parses a form as it arrives. Keeps the first images and skips everything else."""

    def __init__(self, boundary: bytes, length: int, max_images: int) -> None:
        """
        Args:
            boundary: The delimiter between parts, without its leading hyphens.
            length: Length of the whole body in bytes, or -1 if the length is unknown.
            max_images: Number of images to keep. Everything after these images is ignored.
        """
        self._boundary = boundary
        self._length = length
        self._max_images = max_images
        self._images: list[bytes] = []
        self._begun = False
        self._delimiters = 0

    def write(self, chunk: bytes) -> None:
        """Parse the next bytes of the form.

        Raises MissingImage if the form is malformed, or has too many parts.
        """
        if len(self._images) >= self._max_images:
            return
        if len(chunk) == self._length and (image := only_part(chunk, self._boundary)) is not None:
            self._images.append(image)
            return
        if not self._begun:
            # After line breaks at the start of a form, the parser would skip the rest of the chunk.
            chunk = chunk.lstrip(b"\r\n")
            self._begun = bool(chunk)
        try:
            self._parse(chunk)
        except _Enough:
            pass
        except FormParserError as error:
            raise MissingImage(f"The form is malformed: {error}. {HOW}.") from error

    def images(self) -> list[bytes]:
        """Return the images. An image may be empty. Raises MissingImage if there are no images."""
        if not self._images:
            raise MissingImage(f"The form has no complete field 'img'. {HOW}.")
        return self._images

    def _parse(self, chunk: bytes) -> None:
        """Run the parser, and limit its work.

        The parser is slow where data contains the boundary, and where spaces follow a delimiter
        (RFC 2046, section 5.1.1). So the number of delimiters is limited, and the spaces are
        removed before they reach the parser.
        """
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
            if self._delimiters > MAX_OTHERS + self._max_images + 1:
                raise MissingImage(TOO_MANY_PARTS)

    @functools.cached_property
    def _parser(self) -> MultipartParser:
        parts = _Parts(self._images, self._max_images)
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
    """Receives the parser's callbacks, and keeps the images.

    This class has no reference to the parser. A cycle of references would keep parts of the body in
    memory until a garbage collection.
    """

    def __init__(self, images: list[bytes], max_images: int) -> None:
        self._images = images
        self._max_images = max_images
        self._image = io.BytesIO()
        self._name = self._value = b""
        self._parameters = 0
        self._parts = 0
        self._is_image = False

    def begin(self) -> None:
        self._is_image = False
        self._parts += 1
        # Without this limit, 10 MiB of empty parts would block the event loop for seconds.
        if self._parts > MAX_OTHERS + self._max_images:
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
                    f"The headers of the parts have more than {MAX_PARAMETERS:,} parameters. {HOW}."
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
            if len(self._images) == self._max_images:
                raise _Enough


def only_part(body: bytes, boundary: bytes) -> bytes | None:
    """Return the image in a complete form that has one part, without the parser.

    Most forms have one part, and this function takes a fifth of the parser's time. Returns None if
    the form has a different structure. The parser must then read the form.
    """
    delimiter = b"--" + boundary
    end = body.find(b"\r\n" + delimiter, len(delimiter))
    if end < 0 or body[end + 2 + len(delimiter) :] not in (b"--\r\n", b"--"):
        return None
    head = _HEAD_OF_ONLY_PART.match(body, len(delimiter), end)
    return body[head.end() : end] if head and body.startswith(delimiter) else None
