"""Encodes and parses the messages between front ends and the engine process.

A front end is a process that serves HTTP. This module does no I/O. A message is a frame: a header
(length of the body, kind, number) and a body. Integers and floats have the byte order of the
machine, because both processes run on the same machine. The number identifies the request that the
frame belongs to, or is 0 if there is no such request. The number of a MODEL frame identifies a
model, and ANSWER frames refer to the model by this number.

    front end -> engine    SUBMIT   deadline, pixels       CANCEL                  CALL   JSON
                           DECODE   deadline, client, encoded image
    engine -> front end    ANSWER   seconds, sizes, row    ERROR  code, seconds    RESULT JSON
                           STATE    JSON                   MODEL  JSON
                           DECODED  pixels

Deadlines are times of CLOCK_MONOTONIC, which is the same for all processes of a machine. Therefore,
the time of a request includes the transfer of its frames. `FrameReader` checks each frame header
before it waits for the body, and rejects bodies that are longer or shorter than `BOUNDS` allows.
After BadFrame, the connection must be closed.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final, NamedTuple

import orjson

from service.decoding.image import EncodedImage
from service.rate_limit import Client

IMAGE_BYTES: Final = 32 * 32 * 3

SUBMIT: Final = 1
CANCEL: Final = 2
CALL: Final = 3
ANSWER: Final = 4
ERROR: Final = 5
RESULT: Final = 6
STATE: Final = 7
MODEL: Final = 8
DECODE: Final = 9
DECODED: Final = 10

_HEAD = struct.Struct("=IBQ")
_SUBMIT = struct.Struct("=d")
_ANSWER = struct.Struct("=dIII")
_ERROR = struct.Struct("=Bd")
_DECODE = struct.Struct("=d64p32pIIQ")
_MAX_CLASSES = 65_536
_MAX_DETAIL = 1024
_MAX_JSON = 2**20
_MAX_ENCODED = 2**30

BOUNDS: Final = {
    SUBMIT: (_SUBMIT.size + IMAGE_BYTES, _SUBMIT.size + IMAGE_BYTES),
    CANCEL: (0, 0),
    CALL: (2, _MAX_JSON),
    ANSWER: (_ANSWER.size, _ANSWER.size + 4 * _MAX_CLASSES),
    ERROR: (_ERROR.size, _ERROR.size + _MAX_DETAIL),
    RESULT: (2, _MAX_JSON),
    STATE: (2, _MAX_JSON),
    MODEL: (2, _MAX_JSON),
    DECODE: (_DECODE.size + 1, _DECODE.size + _MAX_ENCODED),
    DECODED: (IMAGE_BYTES, IMAGE_BYTES),
}
"""Minimum and maximum number of bytes of the body of a frame, by kind of the frame."""


class BadFrame(Exception):
    """Received bytes are not a valid frame. The connection must be closed."""


class Frame(NamedTuple):
    """A received message."""

    kind: int
    """Kind of the message, such as `SUBMIT`."""
    number: int
    """Number of the request, or of the model in a MODEL frame. 0: the frame belongs to no
    request."""
    body: bytes


class Answer(NamedTuple):
    """The result of a SUBMIT frame."""

    infer_seconds: float
    """Duration of the batch, in seconds."""
    batch_size: int
    """Number of images in the batch."""
    bucket: int
    """Size that the batch was padded to."""
    model: int
    """Number of the MODEL frame with the manifest of the model."""
    row: bytes
    """Probabilities of the classes as float32 values."""


class Error(NamedTuple):
    """The error that a request failed with."""

    code: int
    """Key of the exception in `error_codec.KINDS`."""
    retry_after: float
    """Number of seconds after which the client may try again."""
    detail: str
    """Message of the exception."""


def submit(number: int, deadline: float, image: bytes) -> bytes:
    """Encode a request to classify `image`.

    `image` has the bytes of a uint8 array of shape (32, 32, 3) in C order.
    """
    return _HEAD.pack(_SUBMIT.size + len(image), SUBMIT, number) + _SUBMIT.pack(deadline) + image


def decode(number: int, deadline: float, client: Client, image: EncodedImage) -> bytes:
    """Encode a request to decode `image`. `client`: identifier of the client, at most 63 bytes."""
    body = _DECODE.pack(
        deadline,
        client if isinstance(client, bytes) else client.encode(),
        image.kind.encode(),
        image.width,
        image.height,
        image.max_pixels,
    )
    return b"".join((_HEAD.pack(len(body) + len(image.data), DECODE, number), body, image.data))


def decoded(number: int, pixels: bytes) -> bytes:
    """Encode the result of a DECODE frame.

    `pixels` has the bytes of a uint8 array of shape (32, 32, 3) in C order.
    """
    return _HEAD.pack(len(pixels), DECODED, number) + pixels


def cancel(number: int) -> bytes:
    """Encode the cancellation of a request."""
    return _HEAD.pack(0, CANCEL, number)


def answer(number: int, content: Answer) -> bytes:
    """Encode the result of a SUBMIT frame."""
    seconds, size, bucket, model, row = content
    head = _HEAD.pack(_ANSWER.size + len(row), ANSWER, number)
    return head + _ANSWER.pack(seconds, size, bucket, model) + row


def error(number: int, content: Error) -> bytes:
    """Encode the error of a SUBMIT or DECODE frame.

    A long detail is truncated, possibly within a multibyte character. `read_error` accepts an
    incomplete character.
    """
    detail = content.detail.encode(errors="replace")[:_MAX_DETAIL]
    head = _HEAD.pack(_ERROR.size + len(detail), ERROR, number)
    return head + _ERROR.pack(content.code, content.retry_after) + detail


def message(kind: int, number: int, content: dict[str, Any]) -> bytes:
    """Encode a CALL, RESULT, STATE or MODEL frame.

    Raises ValueError if `content` has more than 1 MiB as JSON.
    """
    body = orjson.dumps(content)
    if len(body) > _MAX_JSON:
        raise ValueError(f"the message has {len(body):,} bytes; at most {_MAX_JSON:,} are allowed")
    return _HEAD.pack(len(body), kind, number) + body


def read_submit(body: bytes) -> tuple[float, bytes]:
    """Parse the body of a SUBMIT frame into deadline and pixels. Raises BadFrame."""
    (deadline,) = _SUBMIT.unpack_from(body)
    if not math.isfinite(deadline):
        raise BadFrame("the deadline is not a finite number")
    return deadline, body[_SUBMIT.size :]


def read_decode(body: bytes) -> tuple[float, bytes, EncodedImage]:
    """Parse the body of a DECODE frame into deadline, client and image. Raises BadFrame."""
    deadline, client, kind, width, height, max_pixels = _DECODE.unpack_from(body)
    if not math.isfinite(deadline):
        raise BadFrame("the deadline is not a finite number")
    data, kind = body[_DECODE.size :], kind.decode("latin-1")
    return deadline, client, EncodedImage(data, kind, width, height, max_pixels)


def read_answer(body: bytes) -> Answer:
    """Parse the body of an ANSWER frame. Raises BadFrame."""
    row = body[_ANSWER.size :]
    if len(row) % 4:
        raise BadFrame(f"a row of {len(row)} bytes is not an array of float32")
    seconds, size, bucket, model = _ANSWER.unpack_from(body)
    return Answer(seconds, size, bucket, model, row)


def read_error(body: bytes) -> Error:
    """Parse the body of an ERROR frame. Raises BadFrame."""
    code, retry_after = _ERROR.unpack_from(body)
    if not 0 <= retry_after < math.inf:
        raise BadFrame("retry_after is negative or not finite")
    return Error(code, retry_after, body[_ERROR.size :].decode(errors="replace"))


def read_message(body: bytes) -> dict[str, Any]:
    """Parse the body of a CALL, RESULT, STATE or MODEL frame. Raises BadFrame."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadFrame(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadFrame("not a JSON object")
    return content


class FrameReader:
    """Splits received bytes into frames."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._needed = _HEAD.size

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises BadFrame."""
        self._pieces.append(data)
        self._buffered += len(data)
        if self._buffered < self._needed:  # joining the pieces of a frame once saves copies
            return []
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        frames, start, end = [], 0, len(data)
        self._needed = _HEAD.size
        while end - start >= _HEAD.size:
            length, kind, number = _HEAD.unpack_from(data, start)
            minimum, maximum = BOUNDS.get(kind, (1, 0))
            if not minimum <= length <= maximum:
                raise BadFrame(f"a frame of kind {kind} cannot have {length:,} bytes")
            after = start + _HEAD.size + length
            if after > end:
                self._needed = after - start
                break
            frames.append(Frame(kind, number, data[start + _HEAD.size : after]))
            start = after
        self._pieces = [data[start:]] if start < end else []
        self._buffered = end - start
        return frames
