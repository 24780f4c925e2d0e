"""Converts ModelInferRequest messages to inference inputs, and probabilities to ModelInferResponse.

A request message is converted to the InferenceRequest of REST, so the same checks apply. The field
`raw_input_contents` contains the elements of the input in the encoding of binary data over REST.
Alternatively, the field `contents` contains the elements as a typed list. The elements of the
response have the same form as the elements of the request. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from model_store.engine import Probabilities
from model_store.manifest import Manifest
from service.errors import BadInference
from service.grpc import wire_prescan
from service.grpc.messages import ModelInferRequest, ModelInferResponse
from service.v2.inputs import InferInputs, infer_inputs, only_input, validated
from service.v2.outputs import OutputTensor, Reply, output_tensors
from service.v2.schemas import MAX_DIMENSIONS, InferenceRequest, RequestInput
from service.v2.tensor_data import Elements, from_binary

CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}
"""Maps each datatype to the field of InferTensorContents that contains elements of this
datatype."""


def read(data: bytes) -> Any:
    """Check the limits of an encoded ModelInferRequest, and parse the message. Raises
    BadInference."""
    wire_prescan.check(data)
    return parsed(ModelInferRequest, data)


def parsed(message_class: Any, data: bytes) -> Any:
    """Parse `data` as a message of `message_class`. Raises BadInference."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        name = message_class.DESCRIPTOR.full_name
        raise BadInference(f"The message cannot be parsed as {name}.") from None


def request(message: Any, model: Manifest, max_images: int) -> InferInputs:
    """Convert a ModelInferRequest to inference inputs.

    Args:
        message: The ModelInferRequest.
        model: The loaded model.
        max_images: Maximum number of images in the request.

    Raises:
        BadInference: The request does not follow the protocol, or the model does not have the
            input.
        TooManyImages: The request has more than `max_images` images.
    """
    raw = message.raw_input_contents
    members = {
        "id": message.id or None,
        "parameters": _parameters(message.parameters) | {"binary_data_output": bool(raw)},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                # One dimension above the maximum is kept, so that the check rejects the shape.
                "shape": tensor.shape[: MAX_DIMENSIONS + 1],
                "parameters": _parameters(tensor.parameters),
            }
            for tensor in message.inputs
        ],
        "outputs": [
            {"name": output.name, "parameters": _parameters(output.parameters)}
            for output in message.outputs
        ],
    }
    checked = validated(InferenceRequest.model_validate, members)
    tensor = only_input(checked, max_images)
    contents = message.inputs[0].contents
    if not raw:
        return infer_inputs(checked, _typed_elements(tensor, contents), model)
    if len(raw) != 1 or contents.ByteSize():
        raise BadInference(
            f"The request has one input, but the number of entries in raw_input_contents is "
            f"{len(raw)}{', and contents also has data' if contents.ByteSize() else ''}. Send the "
            "tensor as one entry of raw_input_contents or in contents."
        )
    return infer_inputs(checked, from_binary(tensor, memoryview(raw[0])), model)


def response(reply: Reply, model: Manifest, rows: Sequence[Probabilities]) -> Any:
    """Build the ModelInferResponse of a request.

    Args:
        reply: The id and the outputs of the response.
        model: The model that returned the probabilities.
        rows: The probabilities of each image, float32 of shape (classes,).
    """
    raw = reply.outputs[0].binary  # all outputs have the same form
    message = ModelInferResponse(
        model_name=model.name, model_version=model.version, id=reply.id or ""
    )
    for tensor in output_tensors(reply, model, rows):
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_output_contents.append(tensor.binary)
        else:
            getattr(output.contents, CONTENTS[tensor.datatype]).extend(_elements(tensor))
    return message


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters as plain values, without parameters that only REST uses."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
        for name, parameter in parameters.items()
        if name not in ("binary_data", "binary_data_output", "binary_data_size")
    }


def _typed_elements(tensor: RequestInput, contents: Any) -> Elements:
    name = CONTENTS[tensor.datatype]
    elements = getattr(contents, name)
    if len(elements) != (size := math.prod(tensor.shape)):
        raise BadInference(
            f"'{name}' has {len(elements):,} elements, but datatype {tensor.datatype} and shape "
            f"{tensor.shape} need {size:,} elements. Send all elements in this field, or in "
            "raw_input_contents."
        )
    if tensor.datatype == "BYTES":
        return [(image,) for image in elements]
    return np.array(elements, dtype=np.float64).reshape(tensor.shape)


def _elements(tensor: OutputTensor) -> list[Any]:
    if tensor.datatype == "BYTES":
        return [text.encode() for text in tensor.data]
    return tensor.data
