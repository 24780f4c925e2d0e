"""From the bytes of an inference request to images, and from probabilities to those of its answer.

Pure: the Open Inference Protocol v2 with Triton's extensions for binary tensors and
classification, for one model. `parse` reads the bodies of REST, `rpc.translation` the messages of
gRPC; both end in `asked`. What speaks HTTP is `inference`.

A request has n images as one of
    image   BYTES [n] or [n, 1]         encoded as for /predict; in JSON, in base64
    pixels  UINT8 [n, 32, 32, 3]        height x width x red, green, blue
    pixels  FP32  [n, 3, 32, 32]        normalised: (pixel / 255 - mean) / std, of 8-bit pixels
and gets
    class          BYTES [n]            the most probable one
    probability    FP32  [n]            of that class
    probabilities  FP32  [n, classes]   a softmax

What the network sees are always 8-bit pixels. FP32 is taken back to them, which is exact, and is
refused where it is not: whoever normalised otherwise, or with another mean, is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from model_store.engine import SIDE, Image
from model_store.manifest import Manifest
from service.errors import BadInference, TooManyImages
from service.v2.elements import (
    Elements,
    Encoded,
    denormalised,
    in_binary,
    in_json,
    whole_pixels,
)
from service.v2.outputs import Reply, wanted
from service.v2.prescan import outline
from service.v2.schemas import InferenceRequest, RequestInput, fault

MAX_HEADER_DIGITS = 12
SHAPES = {
    ("image", "BYTES"): ([], [1]),
    ("pixels", "UINT8"): ([SIDE, SIDE, 3],),
    ("pixels", "FP32"): ([3, SIDE, SIDE],),
}
"""Input and type -> what may follow n in its shape."""


@dataclass(frozen=True, slots=True)
class InferInputs:
    """What is asked for, within how many seconds. Of `encoded` and `pixels` one is empty."""

    reply: Reply
    seconds: float | None
    encoded: Sequence[Encoded]
    pixels: Sequence[Image]


def header_length(text: str | None) -> int | None:
    """The length of the JSON, from the header Inference-Header-Content-Length; None: it is all.

    Raises BadInference.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_HEADER_DIGITS):
        raise BadInference(
            f"Inference-Header-Content-Length: {text[:64]!r} is not a number of bytes."
        )
    return int(text)


def parse(body: bytes, header: int | None, model: Manifest, max_images: int) -> InferInputs:
    """Raises BadInference, TooManyImages."""
    if header is not None and not 0 < header <= len(body):
        raise BadInference(
            f"Inference-Header-Content-Length says {header:,} bytes of JSON, and the body has "
            f"{len(body):,} in all. A request begins with JSON."
        )
    text, aside = outline(body[:header])
    request = validated(InferenceRequest.model_validate_json, text)
    tensor = only_input(request, max_images)
    raw = _raw(tensor, memoryview(body)[len(body) if header is None else header :])
    elements = in_json(tensor, aside) if raw is None else in_binary(tensor, raw)
    return asked(request, elements, model)


def validated(validate: Callable[[Any], InferenceRequest], given: Any) -> InferenceRequest:
    """`validate(given)`. Raises BadInference instead of pydantic's ValidationError."""
    try:
        return validate(given)
    except ValidationError as error:
        raise BadInference(fault(error)) from None


def only_input(request: InferenceRequest, max_images: int) -> RequestInput:
    """The request's input, whose shape is one that is taken. Raises BadInference, TooManyImages."""
    if len(request.inputs) != 1:
        raise BadInference(
            f"The request has {len(request.inputs)} inputs. Send one: 'image' or 'pixels'."
        )
    tensor = request.inputs[0]
    _check_shape(tensor, max_images)
    if "shared_memory_region" in tensor.parameters:
        raise BadInference("Shared memory is not served. Send the tensor in the request.")
    return tensor


def asked(request: InferenceRequest, elements: Elements, model: Manifest) -> InferInputs:
    """What `request` asks for, whose only input has `elements`. Raises BadInference."""
    reply, seconds = Reply(request.id, wanted(request)), _seconds(request.parameters)
    if isinstance(elements, list):
        return InferInputs(reply, seconds, elements, [])
    if request.inputs[0].datatype == "UINT8":
        return InferInputs(reply, seconds, [], list(whole_pixels(elements)))
    return InferInputs(reply, seconds, [], list(denormalised(elements, model.normalisation)))


def _seconds(parameters: dict[str, Any]) -> float | None:
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise BadInference("The parameter 'timeout' is not a number of microseconds.")
    return timeout / 1e6 if timeout else None


def _check_shape(tensor: RequestInput, max_images: int) -> None:
    count, *rest = tensor.shape
    if rest not in SHAPES.get((tensor.name, tensor.datatype), ()) or count < 1:
        raise BadInference(
            f"There is no input {tensor.name!r} of {tensor.datatype!r} {tensor.shape}. Send "
            "'image' of BYTES [n], 'pixels' of UINT8 [n, 32, 32, 3], or 'pixels' of FP32 "
            "[n, 3, 32, 32]."
        )
    if count > max_images:
        raise TooManyImages(
            f"The request has {count:,} images and {max_images} are allowed. Send the others in "
            "another request."
        )


def _raw(tensor: RequestInput, binary: memoryview) -> memoryview | None:
    """The tensor's binary data; None where the JSON has its elements."""
    if "binary_data_size" not in tensor.parameters:
        if tensor.data is None:
            raise BadInference("The input has neither 'data' nor a 'binary_data_size'.")
        if binary:
            raise BadInference(f"{len(binary):,} bytes behind the JSON belong to no input.")
        return None
    size = tensor.parameters["binary_data_size"]
    if tensor.data is not None:
        raise BadInference("The input has both 'data' and a 'binary_data_size'.")
    if type(size) is not int or size != len(binary):
        raise BadInference(
            f"The parameter 'binary_data_size' is not {len(binary)}, the number of bytes behind "
            "the JSON. Inference-Header-Content-Length says where the JSON ends."
        )
    return binary
