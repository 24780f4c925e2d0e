"""Tests the conversion of ModelInferRequest and ModelInferResponse messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.errors import BadInference, TooManyImages
from service.grpc.messages import ModelInferRequest
from service.grpc.translation import parsed, read, request, response
from service.v2.inputs import InferInputs
from tests.fakes import MODEL

ROW = np.array([0.01] * 7 + [0.91, 0.01, 0.01], np.float32)


def message(
    name: str = "image", datatype: str = "BYTES", shape: tuple[int, ...] = (1,), **parts: Any
) -> Any:
    result = ModelInferRequest(model_name="fake", **parts)
    result.inputs.add(name=name, datatype=datatype, shape=shape)
    return result


def converted(sent: Any) -> InferInputs:
    return request(read(sent.SerializeToString()), MODEL, 64)


def test_request_with_raw_and_typed_images() -> None:
    """Raw images have a length each, typed images are elements. The response gets the same form."""
    raw = converted(message(shape=(2,), raw_input_contents=[b"\1\0\0\0a\2\0\0\0bc"]))
    sent = message(shape=(2,))
    sent.inputs[0].contents.bytes_contents.extend([b"a", b"bc"])
    typed = converted(sent)
    for inputs in raw, typed:
        assert [b"".join(pieces) for pieces in inputs.encoded] == [b"a", b"bc"]
    assert all(output.binary for output in raw.reply.outputs)
    assert not any(output.binary for output in typed.reply.outputs)


@pytest.mark.parametrize("is_raw", [True, False])
def test_request_with_pixels(is_raw: bool) -> None:
    """UINT8 and normalized FP32 pixels are restored exactly, raw and typed."""
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, std = np.array(MODEL.normalisation.mean), np.array(MODEL.normalisation.std)
    floats = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype("<f4")
    for datatype, array in ("UINT8", pixels), ("FP32", floats):
        sent = message("pixels", datatype, array.shape)
        contents = sent.inputs[0].contents
        if is_raw:
            sent.raw_input_contents.append(array.tobytes())
        elif datatype == "UINT8":
            contents.uint_contents.extend(array.ravel())
        else:
            contents.fp32_contents.extend(array.ravel())
        assert np.array_equal(np.stack(list(converted(sent).pixels)), pixels)


def test_request_with_parameters() -> None:
    """Id, timeout and outputs are converted; the parameters for REST's binary data are ignored."""
    sent = message(id="42", raw_input_contents=[b"\1\0\0\0a"])
    sent.parameters["timeout"].int64_param = 250_000
    sent.parameters["binary_data_output"].bool_param = False  # for REST only
    output = sent.outputs.add(name="probabilities")
    output.parameters["binary_data"].bool_param = False
    output.parameters["classification"].int64_param = 3
    inputs = converted(sent)
    assert (inputs.reply.id, inputs.seconds) == ("42", 0.25)
    assert [(o.name, o.binary, o.classes) for o in inputs.reply.outputs] == [
        ("probabilities", True, 3)
    ]


def test_response_has_the_form_of_the_request() -> None:
    """A raw request gets raw outputs, and a typed request gets typed outputs."""
    raw = converted(message(id="42", raw_input_contents=[b"\1\0\0\0a"]))
    answer = response(raw.reply, MODEL, [ROW])
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "7", "42")
    assert answer.raw_output_contents[0] == b"\5\0\0\0horse"
    assert np.allclose(np.frombuffer(answer.raw_output_contents[2], "<f4"), ROW)
    assert not answer.outputs[0].contents.ByteSize()

    sent = message()
    sent.inputs[0].contents.bytes_contents.append(b"a")
    answer = response(converted(sent).reply, MODEL, [ROW])
    classes, probability, probabilities = answer.outputs
    assert list(classes.contents.bytes_contents) == [b"horse"]
    assert np.allclose(probability.contents.fp32_contents, 0.91)
    assert list(probabilities.shape) == [1, 10] and not answer.raw_output_contents


def both() -> Any:
    sent = message(raw_input_contents=[b"\1\0\0\0a"])
    sent.inputs[0].contents.bytes_contents.append(b"a")
    return sent


def typed_as(name: str) -> Any:
    sent = message("pixels", "UINT8", (1, 32, 32, 3))
    getattr(sent.inputs[0].contents, name).extend([1] * 3072)
    return sent


def too_bright() -> Any:
    sent = message("pixels", "UINT8", (1, 32, 32, 3))
    sent.inputs[0].contents.uint_contents.extend([256] * 3072)
    return sent


def with_parameter(**value: Any) -> Any:
    sent = message(raw_input_contents=[b"\1\0\0\0a"])
    for name, content in value.items():
        setattr(sent.parameters["timeout"], name, content)
    return sent


BAD = {
    "no input": (ModelInferRequest(model_name="fake"), "inputs"),
    "no elements": (message(), "'bytes_contents' has 0 elements"),
    "raw and typed": (both(), "and contents"),
    "two raw contents": (message(raw_input_contents=[b"", b""]), "2 raw_input_contents"),
    "another type's elements": (typed_as("int_contents"), "'uint_contents' has 0"),
    "not a UINT8": (too_bright(), "not a UINT8"),
    "raw of another length": (message(raw_input_contents=[b"\1\0\0\0"]), "consist of 1 elements"),
    "unknown input": (message("input0", raw_input_contents=[b""]), "no input 'input0'"),
    "a long id": (message(id="x" * 2000, raw_input_contents=[b""]), "id"),
    "a timeout of text": (with_parameter(string_param="soon"), "timeout"),
    "a timeout of nothing": (with_parameter(string_param=""), "timeout"),
    "a negative timeout": (with_parameter(int64_param=-1), "timeout"),
}


@pytest.mark.parametrize(("sent", "reason"), BAD.values(), ids=BAD)
def test_request_rejects_bad_messages(sent: Any, reason: str) -> None:
    """A message that does not follow the protocol is rejected with the reason."""
    with pytest.raises(BadInference, match=reason):
        converted(sent)


def test_request_limits_the_number_of_images() -> None:
    """The shape alone decides."""
    with pytest.raises(TooManyImages):
        converted(message(shape=(65,), raw_input_contents=[b""]))


def test_read_rejects_what_the_parser_rejects() -> None:
    """Text that is not UTF-8 passes the prescan, and the parser's error becomes a problem."""
    with pytest.raises(BadInference, match="cannot be parsed"):
        read(b"\x0a\x01\xff")
    with pytest.raises(BadInference):
        parsed(ModelInferRequest, b"\x0a\x05x")


def test_read_checks_the_limits_first() -> None:
    """A million empty inputs, which would take 100 MB, are rejected before parsing."""
    with pytest.raises(BadInference, match="fields"):
        read(b"\x2a\x00" * 1_000_000)
