"""Translation: converts a graph (see `graph`) and its parameters to ONNX operators.

A batch normalization after a convolution is folded into it: the weights are scaled per output
channel, and a bias is added. ONNX Runtime does the same when it loads a file, but
`onnxruntime.quantization` needs a file that contains the folded convolution. The weights are scaled
in float64 and rounded to float32, so results differ in the last digits only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import BadModel
from model_store.onnx.graph import Node
from model_store.params import Arrays


@dataclass(frozen=True)
class Operator:
    """An ONNX operator with one output."""

    op: str
    inputs: Sequence[str]
    """Names of outputs of other operators, of parameters, or of the graph's input."""
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


def translate(
    nodes: Sequence[Node], arrays: Mapping[str, NDArray[Any]], output: str
) -> tuple[list[Operator], Arrays]:
    """Return ONNX operators in the order of computation, and their float32 parameters by name.

    Args:
        nodes: Operators of a graph, in the order of computation.
        arrays: Parameters by name.
        output: Name of the last operator's output.

    Raises:
        BadModel: An operator cannot be translated.
    """
    folded, used = _folded(nodes, arrays)
    operators = []
    for node in folded:
        steps = list(_steps(node))
        for number, operator in enumerate(steps, start=1):
            name = node["name"] if number == len(steps) else f"{node['name']}.{number}"
            operators.append(replace(operator, output=name))
    operators[-1] = replace(operators[-1], output=output)
    names = [name for operator in operators for name in operator.inputs if name in used]
    return operators, {name: used[name].astype(np.float32) for name in names}


def _folded(
    nodes: Sequence[Node], arrays: Mapping[str, NDArray[Any]]
) -> tuple[list[Node], dict[str, NDArray[Any]]]:
    """Merge each batch normalization into the convolution before it, if there is one."""
    known = dict(arrays)
    uses = Counter(name for node in nodes for name in node["names"])
    folded: dict[str, Node] = {}
    for node in nodes:
        if node["op"] == "BatchNorm":
            _fix_gamma(node, known)
            source = folded.get(node["names"][0])
            if source and source["op"] == "Convolution" and uses[source["name"]] == 1:
                del folded[source["name"]]
                node = _merged(source, node, known)
        folded[node["name"]] = node
    return list(folded.values()), known


def _fix_gamma(node: Node, arrays: dict[str, NDArray[Any]]) -> None:
    if node["attrs"]["fix_gamma"] == "True":
        gamma = node["names"][1]
        arrays[gamma] = np.ones_like(arrays[gamma])


def _merged(convolution: Node, norm: Node, arrays: dict[str, NDArray[Any]]) -> Node:
    weight, *bias = (arrays[name].astype(np.float64) for name in convolution["names"][1:])
    gamma, beta, mean, variance = (arrays[name].astype(np.float64) for name in norm["names"][1:])
    factor = gamma / np.sqrt(variance + float(norm["attrs"]["eps"]))
    name = norm["name"]
    arrays[f"{name}.weight"] = weight * factor[:, None, None, None]
    arrays[f"{name}.bias"] = beta + ((bias[0] if bias else 0) - mean) * factor
    names = [convolution["names"][0], f"{name}.weight", f"{name}.bias"]
    return {**convolution, "name": name, "names": names}


def _steps(node: Node) -> Iterator[Operator]:
    """Yield the ONNX operators of an MXNet operator. Their outputs have no names yet."""
    names, attributes = node["names"], node.get("attrs", {})
    match node["op"], attributes:
        case "Convolution", _:
            padding = _numbers(attributes["pad"])
            yield Operator(
                "Conv",
                names,
                "",
                {
                    "kernel_shape": _numbers(attributes["kernel"]),
                    "strides": _numbers(attributes["stride"]),
                    "dilations": _numbers(attributes["dilate"]),
                    "pads": padding + padding,
                    "group": int(attributes["num_group"]),
                },
            )
        case "BatchNorm", _:
            yield Operator("BatchNormalization", names, "", {"epsilon": float(attributes["eps"])})
        case "Activation", {"act_type": "relu"}:
            yield Operator("Relu", names, "")
        case (("elemwise_add" | "broadcast_add"), _):
            yield Operator("Add", names, "")
        case "Pooling", {"global_pool": "True", "pool_type": "avg"}:
            yield Operator("GlobalAveragePool", names, "")
        case "Flatten", _:
            yield Operator("Flatten", names, "")
        case "FullyConnected", _:
            yield Operator("Flatten", names[:1], "")
            yield Operator("Gemm", [f"{node['name']}.1", *names[1:]], "", {"transB": 1})
        case op, _:
            raise BadModel(f"{node['name']}: {op} {attributes} cannot be translated to ONNX")


def _numbers(text: str) -> list[int]:
    """Parse a list of numbers as MXNet writes it, such as `(3, 3)`."""
    return [int(number) for number in text.strip("()").split(",") if number.strip()]
