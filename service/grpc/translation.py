"""From a ModelInferRequest to what it asks for, and from probabilities to a ModelInferResponse.

Pure. The rules are those of REST: a message is turned into REST's InferenceRequest, whose elements
are in `raw_input_contents` as in REST's binary data, or typed in `contents`. The answer has its
elements in the same form.
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
from service.grpc import prescan
from service.grpc.messages import ModelInferRequest, ModelInferResponse
from service.v2.elements import Elements, in_binary
from service.v2.inputs import InferInputs, asked, only_input, validated
from service.v2.outputs import OutputTensor, Reply, answered
from service.v2.schemas import MAX_DIMENSIONS, InferenceRequest, RequestInput

CONTENTS = {"BYTES": "bytes_contents", "UINT8": "uint_contents", "FP32": "fp32_contents"}


def read(data: bytes) -> Any:
    """The ModelInferRequest. Raises BadInference."""
    prescan.check(data)
    return parsed(ModelInferRequest, data)


def parsed(kind: Any, data: bytes) -> Any:
    """The message of class `kind`. Raises BadInference."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadInference(f"The message cannot be read as {kind.DESCRIPTOR.full_name}.") from None


def request(message: Any, model: Manifest, max_images: int) -> InferInputs:
    """What a ModelInferRequest asks for. Raises BadInference, TooManyImages."""
    raw = message.raw_input_contents
    plain = {
        "id": message.id or None,
        "parameters": _values(message.parameters) | {"binary_data_output": bool(raw)},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape[: MAX_DIMENSIONS + 1],  # there may be a million
                "parameters": _values(tensor.parameters),
            }
            for tensor in message.inputs
        ],
        "outputs": [
            {"name": output.name, "parameters": _values(output.parameters)}
            for output in message.outputs
        ],
    }
    checked = validated(InferenceRequest.model_validate, plain)
    tensor = only_input(checked, max_images)
    contents = message.inputs[0].contents
    if not raw:
        return asked(checked, _typed(tensor, contents), model)
    if len(raw) != 1 or contents.ByteSize():
        raise BadInference(
            f"The request has one input and {len(raw)} raw_input_contents"
            f"{' and contents' if contents.ByteSize() else ''}. Send each tensor once."
        )
    return asked(checked, in_binary(tensor, memoryview(raw[0])), model)


def response(reply: Reply, model: Manifest, rows: Sequence[Probabilities]) -> Any:
    """The ModelInferResponse, one row an image."""
    raw = reply.outputs[0].binary  # one form for all
    message = ModelInferResponse(
        model_name=model.name, model_version=model.version, id=reply.id or ""
    )
    for tensor in answered(reply, model, rows):
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_output_contents.append(tensor.binary)
        else:
            getattr(output.contents, CONTENTS[tensor.datatype]).extend(_elements(tensor))
    return message


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that say where REST has its binary data, which have no meaning here."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
        for name, parameter in parameters.items()
        if name not in ("binary_data", "binary_data_output", "binary_data_size")
    }


def _typed(tensor: RequestInput, contents: Any) -> Elements:
    name = CONTENTS[tensor.datatype]
    given = getattr(contents, name)
    if len(given) != (size := math.prod(tensor.shape)):
        raise BadInference(
            f"'{name}' has {len(given):,} elements, and {tensor.datatype} {tensor.shape} {size:,}. "
            "The elements are there, or in raw_input_contents."
        )
    if tensor.datatype == "BYTES":
        return [(image,) for image in given]
    return np.array(given, dtype=np.float64).reshape(tensor.shape)


def _elements(tensor: OutputTensor) -> list[Any]:
    if tensor.datatype == "BYTES":
        return [text.encode() for text in tensor.data]
    return tensor.data
