"""Tests that everything but images is limited before a message is parsed."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadInference
from service.grpc.messages import ModelInferRequest
from service.grpc.wire_prescan import MAX_FIELDS, MAX_REST, check


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_check_accepts_large_images() -> None:
    """Raw and typed images of any size are accepted, and so are 64 images as FP32 pixels."""
    photo = bytes(4_000_000)
    request = ModelInferRequest(model_name="fake", raw_input_contents=[photo])
    check(request.SerializeToString())
    request.inputs.add(name="image").contents.bytes_contents.extend([photo, photo])
    check(request.SerializeToString())
    pixels = ModelInferRequest()
    tensor = pixels.inputs.add(name="pixels", shape=[64, 3, 32, 32])
    tensor.contents.fp32_contents.extend(np.zeros(64 * 3 * 32 * 32, np.float32))
    check(pixels.SerializeToString())


EMPTY = 5_000_000
WORST = {
    "inputs": b"\x2a\x00" * EMPTY,
    "parameters": b"\x22\x00" * EMPTY,
    "outputs": b"\x32\x00" * EMPTY,
    "raw contents": b"\x3a\x00" * EMPTY,
    "bytes contents": field(5, field(5, b"\x42\x00" * EMPTY)),
    "numbers": field(5, field(5, field(3, bytes(EMPTY)))),
    "shape": field(5, field(3, bytes(EMPTY))),
    "parameters of an input": field(5, b"\x22\x00" * EMPTY),
    "parameters of an output": field(6, b"\x12\x00" * EMPTY),
    "an id": field(3, b"x" * EMPTY),
    "unknown numbers": b"\x78\x00" * EMPTY,
}


@pytest.mark.parametrize("message", WORST.values(), ids=WORST)
def test_check_rejects_large_messages_quickly(message: bytes) -> None:
    """10 MiB of anything but images are rejected within 0.1 s of CPU time."""
    started = time.process_time()
    with pytest.raises(BadInference, match=f"{MAX_FIELDS:,} fields"):
        check(message)
    assert time.process_time() - started < 0.1


def test_check_accepts_the_limits() -> None:
    """Exactly `MAX_FIELDS` fields and exactly `MAX_REST` bytes are accepted."""
    check(b"\x2a\x00" * MAX_FIELDS)
    check(field(3, b"x" * MAX_REST))


@pytest.mark.parametrize(
    "message",
    [
        b"\x3a",  # no length
        b"\x3a\x05abc",  # cut short
        b"\x2a\x05abc",
        b"\x2a\x02\x2a\x05abc",
        b"\x2b\x2c",  # a group, which proto3 does not have
        b"\x0f",
        b"\x78" + b"\xff" * 11,  # no end
        b"\x79abc",
    ],
)
def test_check_rejects_broken_messages(message: bytes) -> None:
    """Messages that do not follow the wire format are rejected."""
    with pytest.raises(BadInference, match="not a ModelInferRequest"):
        check(message)


@given(st.binary(max_size=300))
def test_check_raises_no_other_exceptions(message: bytes) -> None:
    """Any bytes are accepted or rejected with a problem."""
    with contextlib.suppress(BadInference):
        check(message)
