"""What a ModelInferRequest asks for, and the ModelInferResponse to it."""

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
    found = ModelInferRequest(model_name="fake", **parts)
    found.inputs.add(name=name, datatype=datatype, shape=shape)
    return found


def asked(found: Any) -> InferInputs:
    return request(read(found.SerializeToString()), MODEL, 64)


def test_images_raw_and_typed() -> None:
    """Each its length and its bytes, or an element of its own."""
    raw = asked(message(shape=(2,), raw_input_contents=[b"\1\0\0\0a\2\0\0\0bc"]))
    found = message(shape=(2,))
    found.inputs[0].contents.bytes_contents.extend([b"a", b"bc"])
    typed = asked(found)
    for call in raw, typed:
        assert [b"".join(pieces) for pieces in call.encoded] == [b"a", b"bc"]
    assert all(output.binary for output in raw.reply.outputs)
    assert not any(output.binary for output in typed.reply.outputs)


@pytest.mark.parametrize("is_raw", [True, False])
def test_pixels(is_raw: bool) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    mean, std = np.array(MODEL.normalisation.mean), np.array(MODEL.normalisation.std)
    floats = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype("<f4")
    for datatype, array in ("UINT8", pixels), ("FP32", floats):
        found = message("pixels", datatype, array.shape)
        contents = found.inputs[0].contents
        if is_raw:
            found.raw_input_contents.append(array.tobytes())
        elif datatype == "UINT8":
            contents.uint_contents.extend(array.ravel())
        else:
            contents.fp32_contents.extend(array.ravel())
        assert np.array_equal(np.stack(list(asked(found).pixels)), pixels)


def test_what_else_a_request_has() -> None:
    found = message(id="42", raw_input_contents=[b"\1\0\0\0a"])
    found.parameters["timeout"].int64_param = 250_000
    found.parameters["binary_data_output"].bool_param = False  # REST's, without meaning here
    wanted = found.outputs.add(name="probabilities")
    wanted.parameters["binary_data"].bool_param = False
    wanted.parameters["classification"].int64_param = 3
    call = asked(found)
    assert (call.reply.id, call.seconds) == ("42", 0.25)
    assert [(o.name, o.binary, o.classes) for o in call.reply.outputs] == [
        ("probabilities", True, 3)
    ]


def test_the_answer_has_the_form_of_the_request() -> None:
    raw = asked(message(id="42", raw_input_contents=[b"\1\0\0\0a"]))
    answer = response(raw.reply, MODEL, [ROW])
    assert (answer.model_name, answer.model_version, answer.id) == ("fake", "7", "42")
    assert answer.raw_output_contents[0] == b"\5\0\0\0horse"
    assert np.allclose(np.frombuffer(answer.raw_output_contents[2], "<f4"), ROW)
    assert not answer.outputs[0].contents.ByteSize()

    found = message()
    found.inputs[0].contents.bytes_contents.append(b"a")
    answer = response(asked(found).reply, MODEL, [ROW])
    classes, probability, probabilities = answer.outputs
    assert list(classes.contents.bytes_contents) == [b"horse"]
    assert np.allclose(probability.contents.fp32_contents, 0.91)
    assert list(probabilities.shape) == [1, 10] and not answer.raw_output_contents


def both() -> Any:
    found = message(raw_input_contents=[b"\1\0\0\0a"])
    found.inputs[0].contents.bytes_contents.append(b"a")
    return found


def typed_as(name: str) -> Any:
    found = message("pixels", "UINT8", (1, 32, 32, 3))
    getattr(found.inputs[0].contents, name).extend([1] * 3072)
    return found


def too_bright() -> Any:
    found = message("pixels", "UINT8", (1, 32, 32, 3))
    found.inputs[0].contents.uint_contents.extend([256] * 3072)
    return found


def with_parameter(**value: Any) -> Any:
    found = message(raw_input_contents=[b"\1\0\0\0a"])
    for name, content in value.items():
        setattr(found.parameters["timeout"], name, content)
    return found


BAD = {
    "no input": (ModelInferRequest(model_name="fake"), "inputs"),
    "no elements": (message(), "'bytes_contents' has 0 elements"),
    "raw and typed": (both(), "and contents"),
    "two raw contents": (message(raw_input_contents=[b"", b""]), "2 raw_input_contents"),
    "another type's elements": (typed_as("int_contents"), "'uint_contents' has 0"),
    "no UINT8": (too_bright(), "no UINT8"),
    "raw of another length": (message(raw_input_contents=[b"\1\0\0\0"]), "not 1 elements"),
    "unknown input": (message("input0", raw_input_contents=[b""]), "no input 'input0'"),
    "a long id": (message(id="x" * 2000, raw_input_contents=[b""]), "id"),
    "a timeout of text": (with_parameter(string_param="soon"), "timeout"),
    "a timeout of nothing": (with_parameter(string_param=""), "timeout"),
    "a negative timeout": (with_parameter(int64_param=-1), "timeout"),
}


@pytest.mark.parametrize(("found", "told"), BAD.values(), ids=BAD)
def test_what_is_refused(found: Any, told: str) -> None:
    with pytest.raises(BadInference, match=told):
        asked(found)


def test_too_many_images() -> None:
    with pytest.raises(TooManyImages):
        asked(message(shape=(65,), raw_input_contents=[b""]))


def test_no_message() -> None:
    """Not UTF-8 where there should be text: the wire format is right, and the parser says no."""
    with pytest.raises(BadInference, match="cannot be read"):
        read(b"\x0a\x01\xff")
    with pytest.raises(BadInference):
        parsed(ModelInferRequest, b"\x0a\x05x")


def test_what_is_too_much_is_not_parsed() -> None:
    """A million empty inputs would be a hundred megabytes."""
    with pytest.raises(BadInference, match="fields"):
        read(b"\x2a\x00" * 1_000_000)
