"""File: reads an untrusted `.onnx` file, and checks the file before a library parses it.

`read_onnx` returns the unchanged bytes of a valid file, and the memory and computation that the
network needs for an image. If a file is invalid, `read_onnx` raises `BadOnnx`, and the message says
which node is invalid, why, and what to do. A valid file

- is one protobuf message of known fields (`wire`, `messages`), without external data, functions,
  subgraphs, training information, sparse tensors, strings as elements or custom operators;
- contains only operators that `operators` lists, with attributes within their bounds;
- defines each name once, and before it is used, so the graph has no cycles;
- has one input, one output, and parameters whose payloads have the size that their shapes need;
- has shapes that follow from the shape of the input alone (`layers`, `layout`), with bounded
  memory and bounded computation per image;
- computes each image of a batch independently of the others.

Payloads are not copied. Reading any file takes at most a few seconds, and at most 200 MB in
addition to the payloads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_store.files import open_regular
from model_store.manifest import BadModel
from model_store.onnx import tensors
from model_store.onnx.messages import MODEL
from model_store.onnx.tensors import FLOAT, HALF, UINT8, N, Tensor, element_type, text
from model_store.onnx.walk import MAX_NODES, MAX_SHOWN, STANDARD, Walk
from model_store.onnx.wire import Decoded, Refusal, decode

MAX_BYTES = 1 << 30
"""Maximum size of a file. VGG-19 has 575 MB in float32. Protobuf cannot read more than 2 GiB."""
MIN_IR, MAX_IR = 4, 13
"""Minimum and maximum version of the file format. Before version 4, parameters were inputs as well.
ONNX Runtime 1.32 reads version 13."""
MIN_OPSET, MAX_OPSET = 13, 21
"""Minimum and maximum version of the standard operator set. Before version 13, several operators
had other meanings."""
MAX_TENSORS = 1 << 14
"""Maximum number of parameters, as in `.params` files."""
MAX_DOMAINS = 16
"""Maximum number of imported operator sets."""
MAX_DESCRIPTIONS = 1 << 16
"""Maximum number of values with a declared type."""
LENGTHS = {"node": MAX_NODES, "initializer": MAX_TENSORS, "value_info": MAX_DESCRIPTIONS}
"""Maximum length of each list of the graph."""

CONVERT = "Export the network with another opset_version, or use onnx.version_converter"
ONE_INPUT = "Export a network that takes images only"
OPEN_SHAPE = "Export the network for images of one size, with an open batch size"


class BadOnnx(BadModel):
    """The file cannot be used. The message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Port:
    """The input or the output of a network."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    """Length of each dimension. If the first length is None, the number of images is open."""


@dataclass(frozen=True)
class OnnxFile:
    """A valid file, and the memory and computation that its network needs."""

    content: bytes
    """All bytes of the file, unchanged."""
    sha256: str
    """SHA-256 of the bytes, in hexadecimal."""
    input: Port
    output: Port
    largest_bytes: int
    """Bytes of the largest computed tensor, per image."""
    live_bytes: int
    """Maximum total size of the tensors that are needed at the same time, in bytes per image."""
    fixed_bytes: int
    """Bytes of tensors that are computed from parameters only, such as dequantized weights."""
    multiply_adds: int
    """Multiply-adds per image. Operators other than convolutions and matrix products count as one
    multiply-add for each element."""
    operators: Mapping[str, int]
    """Number of nodes by operator."""


def read_onnx(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> OnnxFile:
    """Read and check a file.

    Args:
        path: Path of the file.
        max_bytes: Maximum size of the file in bytes.

    Raises:
        BadOnnx: The file cannot be read, is invalid, or exceeds a limit.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                what = f"{size:,} bytes are more than the {max_bytes:,} allowed"
                raise Refusal(what, "Check that this is the right file")
            content = file.read(size)
        if len(content) != size:
            raise Refusal("the file was truncated while it was read", "Copy the file again")
    except OSError as error:
        raise BadOnnx(f"{path}: {error.strerror}. Check the path and its permissions") from error
    except Refusal as refusal:
        raise BadOnnx(f"{path}: {refusal.what}. {refusal.do}") from None
    return verified(content, path)


def verified(content: bytes, path: str | os.PathLike[str]) -> OnnxFile:
    """Check the content of a file. `path` is for error messages. Raises BadOnnx."""
    try:
        return check_onnx(content)
    except Refusal as refusal:
        raise BadOnnx(f"{os.fspath(path)}: {refusal.what}. {refusal.do}") from None


def check_onnx(content: bytes) -> OnnxFile:
    """Check the bytes of a file. Raises Refusal."""
    if not content:
        raise Refusal("the file is empty", "Copy the file again")
    model = decode(content, MODEL)
    opset = _opset(model)
    if "graph" not in model:
        raise Refusal("the file has no graph", "Check that this is an .onnx file")
    graph = model["graph"]
    for what, limit in (
        ("node", MAX_NODES),
        ("initializer", MAX_TENSORS),
        ("value_info", MAX_DESCRIPTIONS),
    ):
        if len(graph[what]) > limit:
            raise Refusal(f"{len(graph[what]):,} entries in the list {what}; {limit:,} are allowed")
    if len(graph["output"]) != 1:
        found = len(graph["output"])
        raise Refusal(f"the graph has {found} outputs instead of one", "Export the logits only")

    parameters = _parameters(graph)
    name, image = _input(graph, parameters)
    walk = Walk(opset, parameters | {name: image}, graph)
    for number, proto in enumerate(graph["node"]):
        walk.step(number, proto)
    result = graph["output"][0].get("name", "")
    if result not in walk.values or result in parameters or result == name:
        raise Refusal(f"no node computes the output {result[:MAX_SHOWN]!r}")
    output = walk.values[result]
    if output.rank < 2 or output.dims[0] != image.dims[0]:
        raise Refusal(
            f"the output has the shape {text(output.dims)}, which is not one row for each image",
            OPEN_SHAPE,
        )
    _check_descriptions(graph, walk.values)
    return OnnxFile(
        content,
        hashlib.sha256(content).hexdigest(),
        _port(name, image),
        _port(result, output),
        walk.largest_bytes,
        walk.peak_bytes,
        walk.fixed_bytes,
        walk.operations,
        dict(walk.operators),
    )


def _opset(model: Decoded) -> int:
    """Return the version of the standard operator set. Raises Refusal."""
    version = model.get("ir_version", 0)
    if not MIN_IR <= version <= MAX_IR:
        raise Refusal(f"ir_version is {version}; {MIN_IR} to {MAX_IR} are supported", CONVERT)
    imports = model["opset_import"]
    found = [entry.get("version", 0) for entry in imports if entry.get("domain", "") in STANDARD]
    # Quantizers import other domains without using them. No node of such a domain is accepted.
    if len(found) != 1 or len(imports) > MAX_DOMAINS:
        raise Refusal("the file must import the standard operator set exactly once", CONVERT)
    if not MIN_OPSET <= found[0] <= MAX_OPSET:
        supported = f"{MIN_OPSET} to {MAX_OPSET} are supported"
        raise Refusal(f"the operator set has the version {found[0]}; {supported}", CONVERT)
    return int(found[0])


def _parameters(graph: Decoded) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {}
    for proto in graph["initializer"]:
        name = proto.get("name", "")
        if not name or name in parameters:
            raise Refusal(f"the name {name[:MAX_SHOWN]!r} of a parameter is empty or occurs twice")
        parameters[name] = tensors.read(proto, f"the parameter {name[:MAX_SHOWN]!r}")
    return parameters


def _input(graph: Decoded, parameters: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Return the name and the type of the images. Raises Refusal."""
    names = [value.get("name", "") for value in graph["input"]]
    images = [value for value in graph["input"] if value.get("name", "") not in parameters]
    if len(images) != 1 or len({*names}) != len(names) or not images[0].get("name"):
        raise Refusal(f"the graph has {len(images)} inputs instead of one", ONE_INPUT)
    name, dtype, dims = _declared(images[0])
    if dtype not in (FLOAT, HALF, UINT8):
        raise Refusal(
            f"the input is {dtype}; float32, float16 and uint8 are supported",
            "Export the network with a float32, float16 or uint8 input",
        )
    if not dims or dims[0] not in (None, 1) or None in dims[1:]:
        raise Refusal(
            f"the input has the shape {dims}; the first dimension must be open or 1, and the "
            "others must be fixed",
            OPEN_SHAPE,
        )
    image = Tensor(dtype, tuple(N if dim is None else dim for dim in dims))
    tensors.check(image)
    return name, image


def _check_descriptions(graph: Decoded, values: Mapping[str, Tensor]) -> None:
    """Check that declared types equal the computed types, because libraries use declarations."""
    symbols: dict[str, int] = {}
    for proto in (*graph["input"], *graph["output"], *graph["value_info"]):
        value = values.get(proto.get("name", ""))
        if value is None:  # left over from a node that a tool removed
            continue
        name, dtype, dims = _declared(proto)
        if dtype != value.dtype:
            raise Refusal(f"{name[:MAX_SHOWN]!r} is declared as {dtype}, but is {value.dtype}")
        described = _dimensions(proto)
        if described is None:
            continue
        if len(dims) != value.rank or any(
            said not in (None, dim)
            or symbols.setdefault(entry.get("dim_param") or f" {dim}", dim) != dim
            for said, dim, entry in zip(dims, value.dims, described, strict=False)
        ):
            raise Refusal(
                f"{name[:MAX_SHOWN]!r} is declared with the shape {dims[:8]}, but has the shape "
                f"{text(value.dims)}",
                "Run onnx.shape_inference.infer_shapes, or remove the declaration",
            )


def _declared(proto: Decoded) -> tuple[str, np.dtype[Any], list[int | None]]:
    """Return the name, the element type and the dimensions of a ValueInfoProto. Raises Refusal."""
    name = proto.get("name", "")
    tensor = proto.get("type", {}).get("tensor_type", {})
    dims = []
    for entry in _dimensions(proto) or []:
        if "dim_value" in entry and "dim_param" in entry:
            raise Refusal(f"{name[:MAX_SHOWN]!r} has a dimension with a value and a name")
        dims.append(entry.get("dim_value"))
    return name, element_type(tensor.get("elem_type"), repr(name[:MAX_SHOWN])), dims


def _dimensions(proto: Decoded) -> list[Decoded] | None:
    shape = proto.get("type", {}).get("tensor_type", {}).get("shape")
    return None if shape is None else shape["dim"]


def _port(name: str, tensor: Tensor) -> Port:
    return Port(name, tensor.dtype, tuple(dim if dim != N else None for dim in tensor.dims))
