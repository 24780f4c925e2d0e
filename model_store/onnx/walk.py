"""Walk: visits the nodes of a graph in order, and adds up the memory and computation they need.

Each node must be an operator of `operators.OPERATORS`, and the inputs of a node must be defined
before the node. The operator's rule computes the shapes of the node's outputs. Memory is counted
from the definition of a tensor to its last use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from model_store.onnx import tensors
from model_store.onnx.node import Node, read_attributes
from model_store.onnx.operators import OPERATORS
from model_store.onnx.tensors import Tensor
from model_store.onnx.wire import Decoded, Refusal

MAX_NODES = 1 << 14
"""Maximum number of nodes. DenseNet-201 in int8 has about 3,000."""
MAX_LIVE_BYTES = 1 << 29
"""Maximum bytes of all tensors that are needed at the same time, per image. VGG-19 needs 141 MB,
including the im2col matrix of a convolution. EfficientNet-B7 at 600 x 600 needs about 210 MB."""
MAX_FIXED_BYTES = 1 << 30
"""Maximum bytes of tensors that are computed from parameters only, such as dequantized weights.
Libraries compute these tensors once and keep them."""
MAX_MULTIPLY_ADDS = 10**11
"""Maximum multiply-adds per image, which take about a second on a CPU core. ResNet-50 needs 4
billion, VGG-19 20 billion, EfficientNet-B7 at 600 x 600 38 billion."""

STANDARD = ("", "ai.onnx")
"""Names of the standard operator domain."""
MAX_SHOWN = 60
"""Maximum characters of a name in a message."""


class Walk:
    """Visits the nodes in order, and adds up the memory and computation that they need."""

    def __init__(self, opset: int, values: dict[str, Tensor], graph: Decoded) -> None:
        self.values = values
        self.operators: Counter[str] = Counter()
        self.largest_bytes = self.fixed_bytes = self.operations = 0
        self._opset = opset
        self._live = {name: value.bytes for name, value in values.items() if not value.constant}
        self._live_bytes = self.peak_bytes = sum(self._live.values())
        self._last_use = {
            name: at for at, node in enumerate(graph["node"]) for name in node["input"]
        } | {graph["output"][0].get("name", ""): MAX_NODES}

    def step(self, number: int, proto: Decoded) -> None:
        """Check a node and define its outputs. Raises Refusal."""
        names = [*proto["output"], proto.get("op_type", "?")]
        label = f"{names[-1][:MAX_SHOWN]} {(proto.get('name') or names[0])[:MAX_SHOWN]!r}"
        try:
            self._compute(number, proto)
        except Refusal as refusal:
            what = f"node {number} ({label}): {refusal.what}"
            raise Refusal(what, refusal.do) from None

    def _compute(self, number: int, proto: Decoded) -> None:
        node = _node(proto, self.values, self._opset)
        result = OPERATORS[node.op].rule(node)
        self.operators[node.op] += 1
        given = [value for value in node.inputs if value]
        constant = all(value.constant for value in given)
        for name, output in zip(proto["output"], result.outputs, strict=True):
            value = replace(output, constant=constant and output.batch_axis is None)
            tensors.check(value)
            if not name or name in self.values:
                raise Refusal(f"the name {name[:MAX_SHOWN]!r} is empty or defined twice")
            self.values[name] = value
            self._hold(name, value)
        elements = (value.elements for value in (*given, *result.outputs))
        self.operations += result.operations or max(elements)
        self.peak_bytes = max(self.peak_bytes, self._live_bytes + result.scratch)
        for name in {*proto["input"], *proto["output"]}:
            if self._last_use.get(name, number) <= number:
                self._live_bytes -= self._live.pop(name, 0)
        self._check_limits()

    def _hold(self, name: str, value: Tensor) -> None:
        if value.constant:
            self.fixed_bytes += value.bytes
        else:
            self._live[name] = value.bytes
            self._live_bytes += value.bytes
            self.largest_bytes = max(self.largest_bytes, value.bytes)

    def _check_limits(self) -> None:
        for what, found, limit in (
            ("bytes of tensors per image", self.peak_bytes, MAX_LIVE_BYTES),
            (
                "bytes of tensors that are computed from parameters",
                self.fixed_bytes,
                MAX_FIXED_BYTES,
            ),
            ("multiply-adds per image", self.operations, MAX_MULTIPLY_ADDS),
        ):
            if found > limit:
                raise Refusal(
                    f"the network needs {found:,} {what}; {limit:,} are allowed",
                    "Use smaller images or a smaller network",
                )


def _node(proto: Decoded, values: Mapping[str, Tensor], opset: int) -> Node:
    """Return a node with its inputs. Raises Refusal."""
    op = proto.get("op_type", "")
    operator = OPERATORS.get(op)
    if proto.get("domain", "") not in STANDARD or proto.get("overload"):
        raise Refusal(
            f"operators of the domain {proto.get('domain', '')[:MAX_SHOWN]!r} or with an overload "
            "are not supported"
        )
    if operator is None or opset < operator.since:
        raise Refusal(
            f"this operator is not supported in operator set {opset}",
            f"Supported are {', '.join(sorted(OPERATORS))}",
        )
    names, outputs = proto["input"], len(proto["output"])
    fewest, most = operator.inputs
    if not fewest <= len(names) <= most or not 1 <= outputs <= operator.outputs:
        raise Refusal(f"{len(names)} inputs and {outputs} outputs are not supported")
    for name in names:
        if name and name not in values:
            raise Refusal(f"the input {name[:MAX_SHOWN]!r} is not defined before it is used")
    inputs = [values[name] if name else None for name in names]
    attributes = read_attributes(proto["attribute"], operator.attributes, opset)
    return Node(op, inputs, attributes, outputs, opset)
