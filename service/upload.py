"""The bytes of the image in a request: a form's file field `img`, or the body itself.

The body is read as it arrives, never beyond the limit and never longer than the time allowed;
only the bytes of `img` are kept, and nothing is written to disk.

A form is multipart/form-data (RFC 7578), parsed by python-multipart. The first part named `img`
counts; other fields are passed over.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from batching import QueueFull
from service.errors import BodyTooLarge, MissingImage, UploadTimeout

FIELD = b"img"
MAX_PARTS = 64
_USUAL_FORM = re.compile(r"multipart/form-data; boundary=([\w'+.-]{1,70})", re.ASCII)
_ONLY_HEAD = re.compile(
    rb'\r\ncontent-disposition: form-data; name="img"(?:; filename="[^"\\\r\n]*")?\r\n'
    rb"(?:content-(?:type|length): [\w/.+-]+\r\n)*\r\n",
    re.IGNORECASE,
)
HOW = (
    "Send multipart/form-data with a file in the field 'img' (curl -F img=@photo.jpg URL), or "
    "the image itself as the body, with Content-Type: image/jpeg, image/png or the like."
)


class Budget:
    """How many bytes of uploads are held at the same moment, by all requests together."""

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Within, call what is given with each number of bytes that is kept; they count until the
        end. It raises QueueFull instead of going beyond the budget."""
        ours = 0

        def hold(count: int) -> None:
            nonlocal ours
            if self.held + count > self._most:
                raise QueueFull("uploads take all the memory that they may", retry_after=1)
            self.held += count
            ours += count

        try:
            yield hold
        finally:
            self.held -= ours


async def read_image(
    request: Request, max_bytes: int, max_seconds: float, hold: Callable[[int], None]
) -> bytes:
    """The image's bytes, at least one; `hold` is told of every chunk that is kept.

    Raises MissingImage, BodyTooLarge, UploadTimeout, Starlette's ClientDisconnect, and what `hold`
    raises.
    """
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() else -1
    if length > max_bytes:
        raise _too_large(max_bytes)
    body = _body_for(request.headers.get("content-type", ""), length)
    received = 0
    try:
        async with asyncio.timeout(max_seconds):
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise _too_large(max_bytes)
                hold(len(chunk))
                body.write(chunk)
    except TimeoutError as error:
        raise UploadTimeout(
            f"The upload did not arrive within {max_seconds:g} seconds: {received:,} bytes did. "
            "Send a smaller image, or use a faster connection."
        ) from error
    return body.image()


class _Raw:
    """A body that is the image."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def image(self) -> bytes:
        if image := b"".join(self._chunks):
            return image
        raise MissingImage(f"The body is empty. {HOW}")


class _Form:
    """A body that is a form: keeps the bytes of the first part named `img`, forgets the rest."""

    def __init__(self, boundary: bytes, length: int) -> None:
        self._boundary = boundary
        self._length = length
        self._chunks: list[bytes] = []
        self._name = self._value = b""
        self._parts = 0
        self._is_image = False
        self._found = False

    def write(self, chunk: bytes) -> None:
        if self._found:
            return  # nothing after the image matters
        if len(chunk) == self._length and (image := only_part(chunk, self._boundary)) is not None:
            self._chunks.append(image)
            self._found = True
            return
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MissingImage(f"The form cannot be read: {error}. {HOW}") from error

    def image(self) -> bytes:
        if not self._found:
            raise MissingImage(f"The form has no complete field 'img'. {HOW}")
        if image := b"".join(self._chunks):
            return image
        raise MissingImage(f"The file in the field 'img' is empty. {HOW}")

    @functools.cached_property
    def _parser(self) -> MultipartParser:
        return MultipartParser(
            self._boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def _begin(self) -> None:
        self._is_image = False
        self._parts += 1
        if self._parts > MAX_PARTS:  # 10 MiB of empty parts would keep the loop for seconds
            raise MissingImage(f"The form has no field 'img' among its first {MAX_PARTS}. {HOW}")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition" and not self._found:
            self._is_image = parse_options_header(self._value)[1].get(b"name") == FIELD
        self._name = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self._chunks.append(data[start:end])

    def _end(self) -> None:
        self._found = self._found or self._is_image


def only_part(body: bytes, boundary: bytes) -> bytes | None:
    """The image of a form that is whole and has it as its only part, as most have: what the parser
    would find, in a fifth of the time. None: the parser's to judge."""
    delimiter = b"--" + boundary
    end = body.find(b"\r\n" + delimiter, len(delimiter))
    if end < 0 or body[end + 2 + len(delimiter) :] not in (b"--\r\n", b"--"):
        return None
    head = _ONLY_HEAD.match(body, len(delimiter), end)
    return body[head.end() : end] if head and body.startswith(delimiter) else None


def _body_for(content_type: str, length: int) -> _Raw | _Form:
    if content_type.lower().startswith("image/"):
        return _Raw()
    if usual := _USUAL_FORM.fullmatch(content_type):
        return _Form(usual[1].encode(), length)
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise MissingImage(f"The request holds no image. {HOW}")
    boundary = options.get(b"boundary")
    if not boundary:
        raise MissingImage(f"The form's Content-Type names no boundary. {HOW}")
    return _Form(boundary, length)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The upload is larger than the {max_bytes:,} bytes that are allowed. Send a smaller image."
    )
