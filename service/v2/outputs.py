"""The outputs of an inference request: which are wanted, and the tensors that answer them. Pure."""

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


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output, and how: behind the JSON or in it, and as how many classes, if so."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the answer has of its request."""

    id: str | None
    outputs: Sequence[Wanted]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output, flat and in row-major order: its elements, and the same in binary."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    binary: bytes


def wanted(request: InferenceRequest) -> list[Wanted]:
    """In the order of the request; all, in JSON or binary, where it names none.

    Raises BadInference.
    """
    binary = _boolean(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return [Wanted(name, binary) for name in OUTPUTS]
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise BadInference("An output is wanted twice.")
    return [_wanted(output, binary) for output in request.outputs]


def answered(
    reply: Reply, model: Manifest, rows: Sequence[Probabilities]
) -> Iterator[OutputTensor]:
    """The outputs that are wanted, in their order, of `rows`: one an image."""
    stacked = np.stack(rows)
    for output in reply.outputs:
        yield _tensor(output, model.classes, stacked)


def serialise(
    reply: Reply, model: Manifest, rows: Sequence[Probabilities]
) -> tuple[bytes, int | None]:
    """The body of REST's answer, and the length of its JSON where binary data follows."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output, tensor in zip(reply.outputs, answered(reply, model, rows), strict=True):
        about: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if output.binary:
            about["parameters"] = {"binary_data_size": len(tensor.binary)}
            binary.append(tensor.binary)
        else:
            about["data"] = tensor.data
        described.append(about)
    body: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if reply.id is not None:
        body["id"] = reply.id
    text = orjson.dumps(body | {"outputs": described})
    return b"".join([text, *binary]), len(text) if binary else None


def _wanted(output: RequestOutput, binary: bool) -> Wanted:
    if output.name not in OUTPUTS:
        raise BadInference(f"There is no output {output.name!r}, but {', '.join(OUTPUTS)}.")
    if "shared_memory_region" in output.parameters:
        raise BadInference("Shared memory is not served. Outputs come in the answer.")
    classes = output.parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise BadInference("The parameter 'classification' is not a number of classes.")
    if classes and output.name != "probabilities":
        raise BadInference("The parameter 'classification' is for the output 'probabilities'.")
    return Wanted(output.name, _boolean(output.parameters, "binary_data", binary), classes)


def _boolean(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadInference(f"The parameter {name!r} is neither true nor false.")
    return value


def _tensor(output: Wanted, classes: Sequence[str], rows: npt.NDArray[np.float32]) -> OutputTensor:
    """`rows`: (n, classes)."""
    if output.classes:
        ranked = np.argsort(-rows, axis=1, kind="stable")[:, : output.classes]
        texts = [
            f"{rows[number, index]:.6f}:{index}:{classes[index]}"
            for number, best in enumerate(ranked)
            for index in best
        ]
        return _bytes(output.name, list(ranked.shape), texts)
    if output.name == "class":
        return _bytes(output.name, [len(rows)], [classes[best] for best in rows.argmax(axis=1)])
    values = rows.max(axis=1) if output.name == "probability" else rows
    binary = values.astype("<f4").tobytes()
    return OutputTensor(output.name, "FP32", list(values.shape), values.ravel().tolist(), binary)


def _bytes(name: str, shape: list[int], texts: list[str]) -> OutputTensor:
    """Each element in binary: its length as a little-endian uint32, and its UTF-8."""
    elements = [text.encode() for text in texts]
    binary = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return OutputTensor(name, "BYTES", shape, texts, binary)
