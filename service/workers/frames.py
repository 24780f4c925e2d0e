"""What front ends and the engine's process say to each other, as bytes. Pure.

A frame is a head (length of the body, kind, number) and a body. Numbers in heads and bodies are in
the machine's own order: nobody else reads them. The number is the front end's name for a request;
what is said of no request has the number 0, and a model has one of its own, which answers refer
to.

    front end -> engine    SUBMIT   deadline, pixels       CANCEL                ASK  JSON
                           DECODE   deadline, client, encoded image
    engine -> front end    ANSWER   seconds, sizes, row    REFUSAL  why, when    TOLD JSON
                           STATE    JSON                   MODEL    JSON
                           DECODED  pixels

Deadlines are absolute, on CLOCK_MONOTONIC, which all processes of a machine share: time spent on
the way counts. A reader checks a head before it waits for the body, takes no body larger than its
kind may have, and raises BadFrame for whatever is no frame; from then on it is of no use.
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
ASK: Final = 3
ANSWER: Final = 4
REFUSAL: Final = 5
TOLD: Final = 6
STATE: Final = 7
MODEL: Final = 8
DECODE: Final = 9
DECODED: Final = 10

_HEAD = struct.Struct("=IBQ")
_SUBMIT = struct.Struct("=d")
_ANSWER = struct.Struct("=dIII")
_REFUSAL = struct.Struct("=Bd")
_DECODE = struct.Struct("=d64p32pIIQ")
_MAX_CLASSES = 65_536
_MAX_DETAIL = 1024
_MAX_JSON = 2**20
_MAX_ENCODED = 2**30

BOUNDS: Final = {
    SUBMIT: (_SUBMIT.size + IMAGE_BYTES, _SUBMIT.size + IMAGE_BYTES),
    CANCEL: (0, 0),
    ASK: (2, _MAX_JSON),
    ANSWER: (_ANSWER.size, _ANSWER.size + 4 * _MAX_CLASSES),
    REFUSAL: (_REFUSAL.size, _REFUSAL.size + _MAX_DETAIL),
    TOLD: (2, _MAX_JSON),
    STATE: (2, _MAX_JSON),
    MODEL: (2, _MAX_JSON),
    DECODE: (_DECODE.size + 1, _DECODE.size + _MAX_ENCODED),
    DECODED: (IMAGE_BYTES, IMAGE_BYTES),
}
"""Kind -> fewest and most bytes of its body."""


class BadFrame(Exception):
    """These bytes are no frame; the message says why. Only a new connection helps."""


class Frame(NamedTuple):
    kind: int
    number: int
    body: bytes


class Answer(NamedTuple):
    """`row`: float32 probabilities, as bytes, that the MODEL of number `model` computed."""

    infer_seconds: float
    batch_size: int
    bucket: int
    model: int
    row: bytes


class Refusal(NamedTuple):
    """`reason` is a number that `refusals` knows."""

    reason: int
    retry_after: float
    detail: str


def submit(number: int, deadline: float, image: bytes) -> bytes:
    """`image`: uint8 (32, 32, 3), C order."""
    return _HEAD.pack(_SUBMIT.size + len(image), SUBMIT, number) + _SUBMIT.pack(deadline) + image


def decode(number: int, deadline: float, client: Client, image: EncodedImage) -> bytes:
    """`client`: at most 63 bytes."""
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
    """`pixels`: uint8 (32, 32, 3), C order."""
    return _HEAD.pack(len(pixels), DECODED, number) + pixels


def cancel(number: int) -> bytes:
    return _HEAD.pack(0, CANCEL, number)


def answer(number: int, told: Answer) -> bytes:
    seconds, size, bucket, model, row = told
    head = _HEAD.pack(_ANSWER.size + len(row), ANSWER, number)
    return head + _ANSWER.pack(seconds, size, bucket, model) + row


def refusal(number: int, told: Refusal) -> bytes:
    # Cut in the middle of a character where need be: reading puts up with that.
    detail = told.detail.encode(errors="replace")[:_MAX_DETAIL]
    head = _HEAD.pack(_REFUSAL.size + len(detail), REFUSAL, number)
    return head + _REFUSAL.pack(told.reason, told.retry_after) + detail


def message(kind: int, number: int, content: dict[str, Any]) -> bytes:
    """ASK, TOLD, STATE or MODEL. Raises ValueError where `content` takes more than a mebibyte."""
    body = orjson.dumps(content)
    if len(body) > _MAX_JSON:
        raise ValueError(f"a message of {len(body):,} bytes; at most {_MAX_JSON:,} may be sent")
    return _HEAD.pack(len(body), kind, number) + body


def read_submit(body: bytes) -> tuple[float, bytes]:
    """The deadline and the image. Raises BadFrame."""
    (deadline,) = _SUBMIT.unpack_from(body)
    if not math.isfinite(deadline):
        raise BadFrame("a deadline that is no time")
    return deadline, body[_SUBMIT.size :]


def read_decode(body: bytes) -> tuple[float, bytes, EncodedImage]:
    """The deadline, the client and the image. Raises BadFrame."""
    deadline, client, kind, width, height, most = _DECODE.unpack_from(body)
    if not math.isfinite(deadline):
        raise BadFrame("a deadline that is no time")
    data, kind = body[_DECODE.size :], kind.decode("latin-1")
    return deadline, client, EncodedImage(data, kind, width, height, most)


def read_answer(body: bytes) -> Answer:
    """Raises BadFrame."""
    row = body[_ANSWER.size :]
    if len(row) % 4:
        raise BadFrame(f"{len(row)} bytes are no row of float32")
    seconds, size, bucket, model = _ANSWER.unpack_from(body)
    return Answer(seconds, size, bucket, model, row)


def read_refusal(body: bytes) -> Refusal:
    """Raises BadFrame."""
    reason, retry_after = _REFUSAL.unpack_from(body)
    if not 0 <= retry_after < math.inf:
        raise BadFrame("a time to wait that is none")
    return Refusal(reason, retry_after, body[_REFUSAL.size :].decode(errors="replace"))


def read_message(body: bytes) -> dict[str, Any]:
    """Raises BadFrame."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadFrame(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadFrame("JSON that is no object")
    return content


class FrameReader:
    """Bytes in, as they arrive; whole frames out."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = _HEAD.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Raises BadFrame."""
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._needed:  # joined once a frame, however small the pieces
            return []
        if len(self._pieces) > 1:
            data = b"".join(self._pieces)
        frames, place, end = [], 0, len(data)
        self._needed = _HEAD.size
        while end - place >= _HEAD.size:
            length, kind, number = _HEAD.unpack_from(data, place)
            fewest, most = BOUNDS.get(kind, (1, 0))
            if not fewest <= length <= most:
                raise BadFrame(f"no frame begins like this: kind {kind}, {length:,} bytes")
            after = place + _HEAD.size + length
            if after > end:
                self._needed = after - place
                break
            frames.append(Frame(kind, number, data[place + _HEAD.size : after]))
            place = after
        self._pieces = [data[place:]] if place < end else []
        self._held = end - place
        return frames
