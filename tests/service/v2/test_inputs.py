"""Tests inference requests over REST: every form of an image, and malformed requests."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.engine import Image
from service.errors import BadInference, TooManyImages
from service.v2.inputs import InferInputs, header_length, parse
from service.v2.json_prescan import MAX_REMAINDER
from service.v2.outputs import RequestedOutput
from tests.fakes import MODEL

MAX_IMAGES = 8
PHOTO = bytes(range(256))
BASE64 = base64.b64encode(PHOTO).decode()
MEAN = np.array(MODEL.normalisation.mean, np.float32)
STD = np.array(MODEL.normalisation.std, np.float32)
PIXELS = np.random.default_rng(7).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
FLOATS: npt.NDArray[np.float32] = ((PIXELS.astype(np.float32) / 255 - MEAN) / STD).transpose(
    0, 3, 1, 2
)


def image(**changes: Any) -> dict[str, Any]:
    """An input with some members changed, or removed by None."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]} | changes
    return {name: value for name, value in tensor.items() if value is not None}


def pixels(**changes: Any) -> dict[str, Any]:
    data = PIXELS[:1].tolist()
    return image(name="pixels", shape=[1, 32, 32, 3], datatype="UINT8", data=data) | changes


def floats(**changes: Any) -> dict[str, Any]:
    return pixels(shape=[1, 3, 32, 32], datatype="FP32", data=FLOATS[:1].tolist()) | changes


def behind(tensor: dict[str, Any], size: int | None) -> dict[str, Any]:
    """The same tensor, with its elements after the JSON."""
    kept = {name: value for name, value in tensor.items() if name != "data"}
    return kept | {"parameters": {"binary_data_size": size}}


def parsed(*inputs: Any, binary: bytes | None = None, **members: Any) -> InferInputs:
    text = json.dumps({"inputs": list(inputs)} | members).encode()
    if binary is None:
        return parse(text, None, MODEL, MAX_IMAGES)
    return parse(text + binary, len(text), MODEL, MAX_IMAGES)


def strings(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def encoded(inputs: InferInputs) -> list[bytes]:
    assert not inputs.pixels
    return [b"".join(pieces) for pieces in inputs.encoded]


def decoded(inputs: InferInputs) -> Image:
    """The 8-bit pixels that the model will get."""
    assert not inputs.encoded
    assert all(p.dtype == np.uint8 and p.shape == (32, 32, 3) for p in inputs.pixels)
    return np.stack(inputs.pixels)


@pytest.mark.parametrize(
    ("shape", "data"),
    [([2], ["aGk=", "eW91"]), ([2, 1], ["aGk=", "eW91"]), ([2, 1], [["aGk="], ["eW91"]])],
)
def test_parse_images_in_base64(shape: list[int], data: Any) -> None:
    """Base64 images are accepted flat and nested."""
    assert encoded(parsed(image(shape=shape, data=data))) == [b"hi", b"you"]


def test_parse_a_large_image_in_base64() -> None:
    """The limit of the JSON does not apply to images in base64."""
    large = PHOTO * 4000
    text = base64.b64encode(large).decode()
    assert len(text) > MAX_REMAINDER
    assert encoded(parsed(image(shape=[2], data=[text, BASE64]))) == [large, PHOTO]


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=MAX_IMAGES))
def test_parse_images_in_binary(images: list[bytes]) -> None:
    """Images of any content and length are accepted as binary data."""
    binary = strings(*images)
    inputs = parsed(behind(image(shape=[len(images)]), len(binary)), binary=binary)
    assert encoded(inputs) == images


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


PLACEHOLDERS = st.builds(
    lambda nulls, name: nulls + name,
    st.sampled_from(["\\u0000", "", "\\u0000" * 2, "\\\\u0000"]),
    st.sampled_from(["0", "1", "", "00", "0=", escaped("0")])
    | st.binary(min_size=8, max_size=8).map(lambda secret: f"{secret.hex()}0"),
)
LARGE = base64.b64encode(PHOTO * 800).decode()
ELEMENTS = PLACEHOLDERS | st.sampled_from([LARGE, BASE64, escaped(BASE64), "", "aGk=", "no!"])


@given(st.lists(ELEMENTS, max_size=MAX_IMAGES - 1), st.integers(0, 2), st.sampled_from("dn"))
def test_elements_are_no_larger_than_the_body(texts: list[str], more: int, key: str) -> None:
    """For any strings and repeated members in the JSON, each element has the bytes of its own
    string, and all elements together have at most as many bytes as the body."""
    data = f'["{LARGE * 2}"' + "".join(f',"{text}"' for text in texts) + "]"
    other = {"d": f',"data":{data}', "n": f',"{LARGE}":"{LARGE}"'}[key] * more
    tensor = (
        f'{{"name":"image","shape":[{len(texts) + 1}],"datatype":"BYTES","data":{data}{other}}}'
    )
    body = f'{{"inputs":[{tensor}]}}'.encode()
    inputs = parse(body, None, MODEL, MAX_IMAGES)
    total = 0
    for text, pieces in zip([LARGE * 2, *texts], inputs.encoded, strict=True):
        try:
            found = b"".join(pieces)
        except BadInference:
            continue
        total += len(found)
        assert found == base64.b64decode(json.loads(f'"{text}"'), validate=True)
    assert total <= len(body)


@pytest.mark.parametrize("flat", [True, False])
def test_parse_pixels_in_json(flat: bool) -> None:
    """UINT8 pixels in JSON are accepted flat and nested."""
    data = (PIXELS.ravel() if flat else PIXELS).tolist()
    inputs = parsed(pixels(shape=list(PIXELS.shape), data=data))
    assert np.array_equal(decoded(inputs), PIXELS)


def test_parse_pixels_in_binary() -> None:
    """UINT8 pixels are accepted as binary data."""
    tensor = behind(pixels(shape=list(PIXELS.shape)), PIXELS.size)
    assert np.array_equal(decoded(parsed(tensor, binary=PIXELS.tobytes())), PIXELS)


@pytest.mark.parametrize("flat", [True, False])
def test_parse_normalized_pixels_in_json(flat: bool) -> None:
    """Pixels that the tutorial's transforms normalized in FP32 are restored exactly."""
    data = (FLOATS.ravel() if flat else FLOATS).tolist()
    assert np.array_equal(decoded(parsed(floats(shape=list(FLOATS.shape), data=data))), PIXELS)


def test_parse_normalized_pixels_in_binary() -> None:
    """Normalized FP32 pixels are accepted as binary data."""
    tensor = behind(floats(shape=list(FLOATS.shape)), FLOATS.nbytes)
    assert np.array_equal(decoded(parsed(tensor, binary=FLOATS.tobytes())), PIXELS)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_pixel_survives_normalization(kind: Any) -> None:
    """All values from 0 to 255 are restored in each channel, from FP32 and FP64."""
    every = np.arange(3072, dtype=np.uint8).reshape(1, 32, 32, 3)
    normalized = (every.astype(kind) / kind(255) - MEAN.astype(kind)) / STD.astype(kind)
    sent = normalized.transpose(0, 3, 1, 2).astype("<f4")
    assert np.array_equal(
        decoded(parsed(behind(floats(), sent.nbytes), binary=sent.tobytes())), every
    )


NOT_EXACT = {
    "another mean": ((PIXELS[:1].astype(np.float32) / 255 - 0.5) / STD).transpose(0, 3, 1, 2),
    "another std": ((PIXELS[:1].astype(np.float32) / 255 - MEAN) / 0.247).transpose(0, 3, 1, 2),
    "not normalized": PIXELS[:1].astype(np.float32).transpose(0, 3, 1, 2),
    "between pixels": FLOATS[:1] + np.float32(0.5 / 255 / 0.2),
    "too large": FLOATS[:1] + np.float32(300),
    "not a number": np.full((1, 3, 32, 32), np.nan, np.float32),
    "infinite": np.full((1, 3, 32, 32), np.inf, np.float32),
    "large": np.full((1, 3, 32, 32), 3e38, np.float32),
}


@pytest.mark.parametrize("wrong", NOT_EXACT.values(), ids=NOT_EXACT)
def test_parse_rejects_pixels_that_are_not_exact(wrong: Any) -> None:
    """FP32 values that are not those of 8-bit pixels are rejected, not rounded."""
    tensor = behind(floats(), wrong.nbytes)
    with pytest.raises(BadInference, match=r"with mean \[0.4914"):
        parsed(tensor, binary=wrong.astype("<f4").tobytes())


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, None), (0, None), (1, 1e-6), (250_000, 0.25), (2**63 - 1, 2**63 / 1e6)],
)
def test_parse_timeout(timeout: int | None, seconds: float | None) -> None:
    """The timeout is in microseconds, as in Triton. 0 and a missing timeout mean None."""
    parameters = {} if timeout is None else {"timeout": timeout}
    assert parsed(image(), parameters=parameters).seconds == seconds


def test_parse_outputs() -> None:
    """Named outputs keep the order of the request. Without names, all outputs are requested."""
    assert parsed(image()).reply.outputs == [
        RequestedOutput("class", False),
        RequestedOutput("probability", False),
        RequestedOutput("probabilities", False),
    ]
    assert parsed(image(), outputs=[]).reply.outputs == parsed(image()).reply.outputs
    inputs = parsed(
        image(),
        id="42",
        parameters={"binary_data_output": True},
        outputs=[
            {"name": "probabilities", "parameters": {"classification": 2}},
            {"name": "class", "parameters": {"binary_data": False}},
        ],
    )
    assert inputs.reply.outputs == [
        RequestedOutput("probabilities", True, 2),
        RequestedOutput("class", False),
    ]
    assert inputs.reply.id == "42"


def test_parse_ignores_unknown_parameters() -> None:
    """Parameters of other extensions, and members in Triton's examples, are ignored."""
    inputs = parsed(
        image(parameters={"content_type": "image/png"}),
        model_name="x",
        parameters={"priority": 1, "sequence_id": 7},
        outputs=[{"name": "class", "parameters": {"color": "blue"}}],
    )
    assert encoded(inputs) == [PHOTO]


def output(name: str = "class", **parameters: Any) -> dict[str, Any]:
    return {"outputs": [{"name": name, "parameters": parameters}]}


ONE = strings(PHOTO)
MALFORMED: dict[str, tuple[list[Any], bytes | None, dict[str, Any]]] = {
    "no inputs": ([], None, {}),
    "inputs of null": ([], None, {"inputs": None}),
    "inputs of text": ([], None, {"inputs": "image"}),
    "an input of text": (["image"], None, {}),
    "two inputs": ([image(), pixels()], None, {}),
    "many inputs": ([image()] * 100, None, {}),
    "id of number": ([image()], None, {"id": 42}),
    "id with a line": ([image()], None, {"id": "a\nb"}),
    "long id": ([image()], None, {"id": "x" * 2000}),
    "parameters of list": ([image()], None, {"parameters": []}),
    "timeout of text": ([image()], None, {"parameters": {"timeout": "1"}}),
    "timeout of fraction": ([image()], None, {"parameters": {"timeout": 0.5}}),
    "timeout of truth": ([image()], None, {"parameters": {"timeout": True}}),
    "negative timeout": ([image()], None, {"parameters": {"timeout": -1}}),
    "huge timeout": ([image()], None, {"parameters": {"timeout": 10**400}}),
    "outputs of text": ([image()], None, {"outputs": "class"}),
    "unknown output": ([image()], None, output("logits")),
    "an output twice": ([image()], None, {"outputs": [{"name": "class"}] * 2}),
    "many outputs": ([image()], None, {"outputs": [{"name": "class"}] * 1000}),
    "output without name": ([image()], None, {"outputs": [{}]}),
    "binary of number": ([image()], None, output(binary_data=1)),
    "binary of all of text": ([image()], None, {"parameters": {"binary_data_output": "yes"}}),
    "classification of text": ([image()], None, output("probabilities", classification="2")),
    "classification of truth": ([image()], None, output("probabilities", classification=True)),
    "negative classification": ([image()], None, output("probabilities", classification=-1)),
    "classification of class": ([image()], None, output("class", classification=1)),
    "output in shared memory": ([image()], None, output(shared_memory_region="x")),
    "input in shared memory": (
        [image(data=None, parameters={"shared_memory_region": "x"})],
        None,
        {},
    ),
    "unknown input": ([image(name="input0")], None, {}),
    "no name": ([image(name=None)], None, {}),
    "no type": ([image(datatype=None)], None, {}),
    "unknown type": ([image(datatype="STRING")], None, {}),
    "type of another input": ([image(datatype="UINT8")], None, {}),
    "type in small letters": ([image(datatype="bytes")], None, {}),
    "no shape": ([image(shape=None)], None, {}),
    "empty shape": ([image(shape=[])], None, {}),
    "shape of number": ([image(shape=1)], None, {}),
    "shape of text": ([image(shape=["1"])], None, {}),
    "shape of fraction": ([image(shape=[1.5])], None, {}),
    "no image": ([image(shape=[0], data=[])], None, {}),
    "open shape": ([image(shape=[-1])], None, {}),
    "two columns": ([image(shape=[1, 2], data=[BASE64] * 2)], None, {}),
    "many dimensions": ([image(shape=[1] * 100)], None, {}),
    "channels first": ([pixels(shape=[1, 3, 32, 32])], None, {}),
    "channels last": ([floats(shape=[1, 32, 32, 3])], None, {}),
    "no data": ([image(data=None)], None, {}),
    "data of text": ([image(data=BASE64)], None, {}),
    "data of number": ([image(data=[1])], None, {}),
    "data of null": ([image(data=[None])], None, {}),
    "too little data": ([image(shape=[2])], None, {}),
    "too much data": ([image(data=[BASE64] * 2)], None, {}),
    "empty data": ([image(data=[])], None, {}),
    "data too deep": ([image(data=[[BASE64]])], None, {}),
    "pixels of text": ([pixels(data=["1"] * 3072)], None, {}),
    "one pixel of text": ([pixels(data=[1] * 3071 + ["x" * 3000])], None, {}),
    "pixels of truth": ([pixels(data=[True] * 3072)], None, {}),
    "pixels of fractions": ([pixels(data=[1.0] * 3072)], None, {}),
    "pixels of null": ([pixels(data=[None] * 3072)], None, {}),
    "a negative pixel": ([pixels(data=[1] * 3071 + [-1])], None, {}),
    "a bright pixel": ([pixels(data=[1] * 3071 + [256])], None, {}),
    "a huge pixel": ([pixels(data=[1] * 3071 + [10**400])], None, {}),
    "a pixel too few": ([pixels(data=[1] * 3071)], None, {}),
    "ragged": ([pixels(data=[[[[1, 2, 3]] * 32] * 31 + [[[1, 2]] * 32]])], None, {}),
    "channels first in data": ([pixels(data=PIXELS[:1].transpose(0, 3, 1, 2).tolist())], None, {}),
    "lists and numbers": ([pixels(data=[[1], 2])], None, {}),
    "floats of text": ([floats(data=["1"] * 3072)], None, {}),
    "binary data of no input": ([image()], ONE, {}),
    "data and binary": ([image(parameters={"binary_data_size": len(ONE)})], ONE, {}),
    "size without binary": ([behind(image(), len(ONE))], None, {}),
    "size too small": ([behind(image(), len(ONE) - 1)], ONE, {}),
    "size too large": ([behind(image(), len(ONE) + 1)], ONE, {}),
    "negative size": ([behind(image(), -len(ONE))], ONE, {}),
    "size of text": ([behind(image(), "260")], ONE, {}),  # type: ignore[arg-type]
    "size of fraction": ([behind(image(), float(len(ONE)))], ONE, {}),  # type: ignore[arg-type]
    "no image in binary": ([behind(image(shape=[0]), 0)], b"", {}),
    "no pixels in binary": ([behind(pixels(shape=[0, 32, 32, 3]), 0)], b"", {}),
    "size of null": ([behind(image(), None)], ONE, {}),
    "two of one": ([behind(image(shape=[2]), len(ONE))], ONE, {}),
    "one of two": ([behind(image(), 2 * len(ONE))], ONE * 2, {}),
    "element beyond the end": ([behind(image(), 8)], b"\xff\xff\xff\xff1234", {}),
    "half a length": ([behind(image(), 2)], b"\1\0", {}),
    "half a length behind": ([behind(image(), len(ONE) + 2)], ONE + b"\1\0", {}),
    "too few pixels": ([behind(pixels(), 3071)], bytes(3071), {}),
    "too many pixels": ([behind(pixels(), 3073)], bytes(3073), {}),
    "too few floats": ([behind(floats(), 3072)], bytes(3072), {}),
}


@pytest.mark.parametrize(("tensors", "binary", "members"), MALFORMED.values(), ids=MALFORMED)
def test_parse_rejects_malformed_requests(
    tensors: list[Any], binary: bytes | None, members: dict[str, Any]
) -> None:
    """Malformed requests are rejected with a sentence of reasonable length."""
    with pytest.raises(BadInference) as caught:
        encoded(parsed(*tensors, binary=binary, **members))
    assert 20 < len(str(caught.value)) < 400 and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"inputs": [}',
        b'{"inputs"\xff: []}',
        b"[" * 100_000,
        b'{"inputs": ' * 10_000,
        b'{"inputs": [{"shape": [' + b"9" * 5000 + b"]}]}",
        b"\x89PNG\r\n",
    ],
)
def test_parse_rejects_invalid_json(text: bytes) -> None:
    """A body that is not a JSON object with inputs is rejected."""
    with pytest.raises(BadInference):
        parse(text, None, MODEL, MAX_IMAGES)


def test_parse_limits_the_number_of_images() -> None:
    """The shape alone decides, before the data is decoded."""
    for tensor in image(shape=[9], data=[]), pixels(shape=[10**30, 32, 32, 3], data=[]):
        with pytest.raises(TooManyImages, match="8 are allowed"):
            parsed(tensor)
    assert len(parsed(image(shape=[8], data=[BASE64] * 8)).encoded) == 8


@pytest.mark.parametrize("size", [0, 10_000])
def test_parse_rejects_a_header_that_does_not_fit_the_body(size: int) -> None:
    """The JSON has at least one byte and at most as many bytes as the body."""
    with pytest.raises(BadInference, match="the length of the JSON"):
        parse(b"{}", size, MODEL, MAX_IMAGES)


@pytest.mark.parametrize(("text", "length"), [(None, None), ("0", 0), ("17", 17), ("007", 7)])
def test_header_length_is_a_decimal_number(text: str | None, length: int | None) -> None:
    """Decimal numbers are accepted, and a missing header is None."""
    assert header_length(text) == length


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.5", "1e3", " 1", "²", "\u0661", "0x10", "1_0", "9" * 5000]
)
def test_header_length_rejects_other_texts(text: str) -> None:
    """Signs, spaces, fractions, other digits and very long numbers are rejected."""
    with pytest.raises(BadInference, match="Inference-Header-Content-Length"):
        header_length(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "pixels"]) | json_values,
        "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 32]), max_size=4) | json_values,
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32"]) | json_values,
        "data": json_values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": json_values}),
    },
)


@given(st.lists(tensors, max_size=2), json_values, json_values, st.binary(max_size=40))
def test_parse_raises_no_other_exceptions(
    tensors: Any, parameters: Any, outputs: Any, binary: bytes
) -> None:
    """Any JSON values, with or without binary data, are accepted or rejected with a problem."""
    text = json.dumps({"inputs": tensors, "parameters": parameters, "outputs": outputs}).encode()
    for header in None, len(text):
        with contextlib.suppress(BadInference, TooManyImages):
            encoded(parse(text + binary, header, MODEL, MAX_IMAGES))


@given(st.binary(max_size=60), st.integers(1, 4), st.booleans())
def test_parse_uses_binary_data_to_the_last_byte(noise: bytes, count: int, prefixed: bool) -> None:
    """Binary data is the elements to its last byte, or the request is rejected."""
    binary = strings(noise) + noise if prefixed else noise
    tensor = behind(image(shape=[count]), len(binary))
    with contextlib.suppress(BadInference):
        assert strings(*encoded(parsed(tensor, binary=binary))) == binary
