"""Builds the outputs of an inference response from the probabilities that the model returned.

For n images, the outputs are:
    class          BYTES [n]            name of the most probable class
    probability    FP32  [n]            probability of that class
    probabilities  FP32  [n, classes]   probabilities of all classes (softmax)

If the request names outputs, the response has only these outputs. All functions are pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from model_store.engine import Probabilities
from model_store.manifest import Manifest
from service.errors import BadInference
from service.v2.schemas import InferenceRequest, RequestOutput

OUTPUTS = ("class", "probability", "probabilities")
"""Names of the outputs."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the request names, and its format."""

    name: str
    binary: bool
    """Whether the output is sent as binary data after the JSON."""
    classes: int = 0
    """k, if the k most probable classes (top-k) are sent instead of all probabilities. 0: all
    probabilities are sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The parts of a response that the request determines: its id, and the list of its outputs."""

    id: str | None
    """The id of the request, which the response repeats. None: the request has no id."""
    outputs: Sequence[RequestedOutput]
    """The outputs, in the order of the response."""


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output tensor. Its elements are in row-major order."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    """The elements as strings or numbers."""
    binary: bytes
    """The same elements in the protocol's binary format."""


def requested_outputs(request: InferenceRequest) -> list[RequestedOutput]:
    """Return the requested outputs in the order of the request.

    If the request names no outputs, the result has all outputs. Raises BadInference if the request
    names an unknown output, names an output twice, or has invalid parameters.
    """
    binary = _boolean(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return [RequestedOutput(name, binary) for name in OUTPUTS]
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise BadInference("The request names an output twice. Name each output once.")
    return [_requested_output(output, binary) for output in request.outputs]


def output_tensors(
    reply: Reply, model: Manifest, rows: Sequence[Probabilities]
) -> Iterator[OutputTensor]:
    """Yield the requested outputs in the order of `reply`.

    Args:
        reply: The id and the outputs of the response.
        model: The model that returned the probabilities.
        rows: The probabilities of each image, float32 of shape (classes,).
    """
    stacked = np.stack(rows)
    for output in reply.outputs:
        yield _tensor(output, model.classes, stacked)


def serialize(
    reply: Reply, model: Manifest, rows: Sequence[Probabilities]
) -> tuple[bytes, int | None]:
    """Encode the body of a response over REST.

    Args:
        reply: The id and the outputs of the response.
        model: The model that returned the probabilities.
        rows: The probabilities of each image, float32 of shape (classes,).

    Returns:
        The body, and the length of the JSON in bytes. The length is None if no binary data follows
        the JSON.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output, tensor in zip(reply.outputs, output_tensors(reply, model, rows), strict=True):
        description: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if output.binary:
            description["parameters"] = {"binary_data_size": len(tensor.binary)}
            binary.append(tensor.binary)
        else:
            description["data"] = tensor.data
        described.append(description)
    body: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if reply.id is not None:
        body["id"] = reply.id
    text = orjson.dumps(body | {"outputs": described})
    return b"".join([text, *binary]), len(text) if binary else None


def _requested_output(output: RequestOutput, binary: bool) -> RequestedOutput:
    if output.name not in OUTPUTS:
        raise BadInference(
            f"The model has no output {output.name!r}. The outputs are {', '.join(OUTPUTS)}."
        )
    if "shared_memory_region" in output.parameters:
        raise BadInference(
            "Shared memory is not supported. Remove the parameter 'shared_memory_region'."
        )
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadInference("The parameter 'classification' must be a whole number from 0.")
    if classes and output.name != "probabilities":
        raise BadInference(
            "The parameter 'classification' is supported for the output 'probabilities' only."
        )
    return RequestedOutput(output.name, _boolean(output.parameters, "binary_data", binary), classes)


def _boolean(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadInference(f"The parameter {name!r} must be true or false.")
    return value


def _tensor(
    output: RequestedOutput, classes: Sequence[str], rows: npt.NDArray[np.float32]
) -> OutputTensor:
    """Build the tensor of one output. `rows`: probabilities, float32 of shape (n, classes)."""
    if output.classes:
        ranked = np.argsort(-rows, axis=1, kind="stable")[:, : output.classes]
        texts = [
            f"{rows[number, index]:.6f}:{index}:{classes[index]}"
            for number, best in enumerate(ranked)
            for index in best
        ]
        return _bytes_tensor(output.name, list(ranked.shape), texts)
    if output.name == "class":
        names = [classes[best] for best in rows.argmax(axis=1)]
        return _bytes_tensor(output.name, [len(rows)], names)
    values = rows.max(axis=1) if output.name == "probability" else rows
    binary = values.astype("<f4").tobytes()
    return OutputTensor(output.name, "FP32", list(values.shape), values.ravel().tolist(), binary)


def _bytes_tensor(name: str, shape: list[int], texts: list[str]) -> OutputTensor:
    """Build a tensor of strings.

    In the binary format, each string is encoded as UTF-8, after its length as a little-endian
    uint32.
    """
    elements = [text.encode() for text in texts]
    binary = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return OutputTensor(name, "BYTES", shape, texts, binary)
