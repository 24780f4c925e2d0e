"""Reads an inference request: its images, its timeout, and the requested outputs.

The module implements the input side of the Open Inference Protocol v2 for one model, with Triton's
extension for binary data. `parse` reads the body of a REST request. `grpc.translation` reads gRPC
messages, and uses the checks of this module. All functions are pure.

A request has one input with n images, in one of these forms:
    image   BYTES [n] or [n, 1]    image files, in the formats of /predict; in JSON, as base64
    pixels  UINT8 [n, 32, 32, 3]   8-bit pixels: height x width x RGB
    pixels  FP32  [n, 3, 32, 32]   normalized 8-bit pixels: (pixel / 255 - mean) / std

The model always gets 8-bit pixels, so FP32 input is converted back to 8-bit pixels. The input is
rejected if the results are not whole numbers, for example because the client used another mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from model_store.engine import SIDE, Image
from model_store.manifest import Manifest
from service.errors import BadInference, TooManyImages, first_error
from service.v2.json_prescan import take_out_long_strings
from service.v2.outputs import Reply, requested_outputs
from service.v2.schemas import InferenceRequest, RequestInput
from service.v2.tensor_data import (
    Elements,
    Encoded,
    denormalized,
    from_binary,
    from_json,
    whole_pixels,
)

MAX_HEADER_DIGITS = 12
"""Maximum number of digits of the header Inference-Header-Content-Length."""
SHAPES = {
    ("image", "BYTES"): ([], [1]),
    ("pixels", "UINT8"): ([SIDE, SIDE, 3],),
    ("pixels", "FP32"): ([3, SIDE, SIDE],),
}
"""Maps the name and datatype of an input to its allowed dimensions after the first dimension, which
is n, the number of images."""


@dataclass(frozen=True, slots=True)
class InferInputs:
    """The content of an inference request. Either `encoded` or `pixels` is empty."""

    reply: Reply
    """The id and the outputs of the response."""
    seconds: float | None
    """The client's timeout in seconds. None: the request has no timeout."""
    encoded: Sequence[Encoded]
    """The images, if the request has image files."""
    pixels: Sequence[Image]
    """The images, if the request has pixels: uint8 of shape (32, 32, 3) each."""


def header_length(text: str | None) -> int | None:
    """Parse the header Inference-Header-Content-Length, the length of the JSON in a body.

    Args:
        text: Value of the header. None: the request does not have the header.

    Returns:
        The length in bytes, or None if the request does not have the header. In that case, the
        whole body is JSON.

    Raises:
        BadInference: The value is not a number of bytes.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_HEADER_DIGITS):
        raise BadInference(
            f"Inference-Header-Content-Length: {text[:64]!r} is not a number of bytes. Send the "
            "length of the JSON, or omit the header if the whole body is JSON."
        )
    return int(text)


def parse(body: bytes, header: int | None, model: Manifest, max_images: int) -> InferInputs:
    """Parse the body of an inference request over REST.

    Args:
        body: The JSON, followed by the binary data, if any.
        header: Length of the JSON in bytes. None: the whole body is JSON.
        model: The loaded model.
        max_images: Maximum number of images in the request.

    Raises:
        BadInference: The body does not follow the protocol, or the model does not have the input.
        TooManyImages: The request has more than `max_images` images.
    """
    if header is not None and not 0 < header <= len(body):
        raise BadInference(
            f"Inference-Header-Content-Length is {header:,}, but the body has {len(body):,} bytes. "
            "The header must be the length of the JSON, which comes first in the body."
        )
    text, long_strings = take_out_long_strings(body[:header])
    request = validated(InferenceRequest.model_validate_json, text)
    tensor = only_input(request, max_images)
    data = _binary_data(tensor, memoryview(body)[len(body) if header is None else header :])
    elements = from_json(tensor, long_strings) if data is None else from_binary(tensor, data)
    return infer_inputs(request, elements, model)


def validated(validate: Callable[[Any], InferenceRequest], value: Any) -> InferenceRequest:
    """Return `validate(value)`. Raises BadInference if `validate` raises a ValidationError."""
    try:
        return validate(value)
    except ValidationError as error:
        raise BadInference(first_error(error)) from None


def only_input(request: InferenceRequest, max_images: int) -> RequestInput:
    """Return the only input of the request, after a check of its shape.

    Raises:
        BadInference: The request has several inputs, or the model does not have the input.
        TooManyImages: The input has more than `max_images` images.
    """
    if len(request.inputs) != 1:
        raise BadInference(
            f"The request has {len(request.inputs)} inputs. Send one input: 'image' or 'pixels'."
        )
    tensor = request.inputs[0]
    _check_shape(tensor, max_images)
    if "shared_memory_region" in tensor.parameters:
        raise BadInference("Shared memory is not supported. Send the tensor in the request.")
    return tensor


def infer_inputs(request: InferenceRequest, elements: Elements, model: Manifest) -> InferInputs:
    """Return the content of `request`.

    Args:
        request: The request, with one input.
        elements: The elements of the input.
        model: The loaded model.

    Raises:
        BadInference: The elements, the timeout or the requested outputs are invalid.
    """
    reply, seconds = Reply(request.id, requested_outputs(request)), _seconds(request.parameters)
    if isinstance(elements, list):
        return InferInputs(reply, seconds, elements, [])
    if request.inputs[0].datatype == "UINT8":
        return InferInputs(reply, seconds, [], list(whole_pixels(elements)))
    return InferInputs(reply, seconds, [], list(denormalized(elements, model.normalisation)))


def _seconds(parameters: dict[str, Any]) -> float | None:
    """Return the parameter `timeout` in seconds, or None if it is missing or 0."""
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise BadInference("The parameter 'timeout' must be a whole number of microseconds.")
    return timeout / 1e6 if timeout else None


def _check_shape(tensor: RequestInput, max_images: int) -> None:
    count, *rest = tensor.shape
    if rest not in SHAPES.get((tensor.name, tensor.datatype), ()) or count < 1:
        raise BadInference(
            f"The model has no input {tensor.name!r} with datatype {tensor.datatype!r} and shape "
            f"{tensor.shape}. Send 'image' as BYTES with shape [n], 'pixels' as UINT8 with shape "
            "[n, 32, 32, 3], or 'pixels' as FP32 with shape [n, 3, 32, 32]."
        )
    if count > max_images:
        raise TooManyImages(
            f"The request has {count:,} images, but at most {max_images} are allowed. Send the "
            "other images in further requests."
        )


def _binary_data(tensor: RequestInput, binary: memoryview) -> memoryview | None:
    """Return the binary data of the tensor, or None if the elements are in the JSON.

    `binary`: the bytes after the JSON, which may be empty.
    """
    if "binary_data_size" not in tensor.parameters:
        if tensor.data is None:
            raise BadInference(
                "The input has neither 'data' nor the parameter 'binary_data_size'. Send one of "
                "them."
            )
        if binary:
            raise BadInference(
                f"The body has {len(binary):,} bytes after the JSON, but the elements of the input "
                "are in 'data'. Send the elements only once."
            )
        return None
    size = tensor.parameters["binary_data_size"]
    if tensor.data is not None:
        raise BadInference(
            "The input has both 'data' and the parameter 'binary_data_size'. Send one of them."
        )
    if type(size) is not int or size != len(binary):
        raise BadInference(
            f"The parameter 'binary_data_size' must be {len(binary)}, the number of bytes after "
            "the JSON. The header Inference-Header-Content-Length must be the length of the JSON."
        )
    return binary
