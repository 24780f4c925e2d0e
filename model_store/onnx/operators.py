"""Operators that a graph may contain, with their attributes and inputs. All others are rejected.

The listed operators cannot access files or sockets. Each operator has a rule that computes the
shapes of the operator's outputs without computing the elements. Operators whose output sizes depend
on elements, such as NonZero or Resize, are not listed. Loops, conditions, random numbers and
strings are not listed either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from model_store.onnx import layers, layout
from model_store.onnx.node import FLOAT, FLOATS, INT, INTS, STRING, TENSOR, Attribute, Node, Result
from model_store.onnx.tensors import MAX_DIM, TYPES

MAX_INPUTS = 1 << 12
"""Maximum number of inputs or outputs of a node. DenseNet-201 concatenates 49 tensors."""
NUMBER = Attribute(FLOAT, -1e6, 1e6)
FLAG = Attribute(INT, 0, 1)
AXIS = Attribute(INT, -8, 8)
DIM = Attribute(INT, 1, MAX_DIM)
DIMS = Attribute(INTS, 1, MAX_DIM)
CODE = Attribute(INT, 0, max(TYPES))
ZERO = Attribute(INT, 0, 0)
PLACES = {
    "auto_pad": Attribute(STRING, choices=("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")),
    "kernel_shape": DIMS,
    "pads": Attribute(INTS, 0, MAX_DIM),
    "strides": DIMS,
}
DILATIONS = {"dilations": DIMS}
EPSILON = {"epsilon": Attribute(FLOAT, 0, 1)}
SATURATE = {"saturate": Attribute(INT, 0, 1, since=19)}


@dataclass(frozen=True)
class Operator:
    """An operator that a graph may contain."""

    rule: Callable[[Node], Result]
    inputs: tuple[int, int] = (1, 1)
    """Minimum and maximum number of inputs."""
    attributes: dict[str, Attribute] = field(default_factory=dict)
    outputs: int = 1
    """Maximum number of outputs."""
    since: int = 1
    """First operator set with the operator."""


OPERATORS = {
    **dict.fromkeys(
        ("Relu", "Sigmoid", "Erf", "Tanh", "Exp", "Sqrt", "Abs", "Neg"), Operator(layers.activation)
    ),
    "LeakyRelu": Operator(layers.activation, attributes={"alpha": NUMBER}),
    "HardSigmoid": Operator(layers.activation, attributes={"alpha": NUMBER, "beta": NUMBER}),
    "HardSwish": Operator(layers.activation, since=14),
    "Gelu": Operator(
        layers.activation,
        attributes={"approximate": Attribute(STRING, choices=("none", "tanh"))},
        since=20,
    ),
    "PRelu": Operator(layers.prelu, (2, 2)),
    "Clip": Operator(layers.clip, (1, 3)),
    "Softmax": Operator(layers.softmax, attributes={"axis": AXIS}),
    "LogSoftmax": Operator(layers.softmax, attributes={"axis": AXIS}),
    "BatchNormalization": Operator(
        layers.normalized,
        (5, 5),
        EPSILON | {"momentum": NUMBER, "training_mode": Attribute(INT, 0, 0, since=14)},
    ),
    "InstanceNormalization": Operator(layers.normalized, (3, 3), EPSILON),
    "LayerNormalization": Operator(
        layers.layer_normalization,
        (2, 3),
        EPSILON | {"axis": AXIS, "stash_type": Attribute(INT, 1, 1)},
        since=17,
    ),
    "LRN": Operator(
        layers.lrn, attributes={"alpha": NUMBER, "beta": NUMBER, "bias": NUMBER, "size": DIM}
    ),
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Pow", "Equal"), Operator(layout.elementwise, (2, 2))
    ),
    **dict.fromkeys(("Min", "Max"), Operator(layout.elementwise, (1, MAX_INPUTS))),
    "Where": Operator(layout.where, (3, 3)),
    "Conv": Operator(layers.conv, (2, 3), PLACES | DILATIONS | {"group": DIM}),
    "MaxPool": Operator(
        layers.pool, attributes=PLACES | DILATIONS | {"ceil_mode": FLAG, "storage_order": ZERO}
    ),
    "AveragePool": Operator(
        layers.pool,
        attributes=PLACES
        | {"ceil_mode": FLAG, "count_include_pad": FLAG}
        | {"dilations": Attribute(INTS, 1, MAX_DIM, since=19)},
    ),
    "GlobalAveragePool": Operator(layers.global_pool),
    "GlobalMaxPool": Operator(layers.global_pool),
    "ReduceMean": Operator(
        layers.reduce,
        (1, 2),
        {
            "keepdims": FLAG,
            "axes": Attribute(INTS, -8, 8, until=17),
            "noop_with_empty_axes": Attribute(INT, 0, 1, since=18),
        },
    ),
    "Gemm": Operator(
        layers.gemm, (2, 3), {"alpha": NUMBER, "beta": NUMBER, "transA": FLAG, "transB": FLAG}
    ),
    "MatMul": Operator(layers.matmul, (2, 2)),
    "QuantizeLinear": Operator(
        layers.quantize,
        (2, 3),
        SATURATE
        | {"axis": AXIS, "block_size": ZERO}
        | {"output_dtype": Attribute(INT, 0, max(TYPES), since=21)},
    ),
    "DequantizeLinear": Operator(layers.dequantize, (2, 3), {"axis": AXIS, "block_size": ZERO}),
    "Cast": Operator(layers.cast, attributes=SATURATE | {"to": CODE}),
    "Flatten": Operator(layout.flatten, attributes={"axis": AXIS}),
    "Reshape": Operator(layout.reshape, (2, 2), {"allowzero": Attribute(INT, 0, 1, since=14)}),
    "Squeeze": Operator(layout.squeeze, (1, 2)),
    "Unsqueeze": Operator(layout.unsqueeze, (2, 2)),
    "Transpose": Operator(layout.transpose, attributes={"perm": Attribute(INTS, 0, 7)}),
    "Concat": Operator(layout.concat, (1, MAX_INPUTS), {"axis": AXIS}),
    "Slice": Operator(layout.slices, (3, 5)),
    "Split": Operator(
        layout.split,
        (1, 2),
        {"axis": AXIS, "num_outputs": Attribute(INT, 1, MAX_INPUTS, since=18)},
        outputs=MAX_INPUTS,
    ),
    "Gather": Operator(layout.gather, (2, 2), {"axis": AXIS}),
    "Pad": Operator(
        layout.pad,
        (2, 4),
        {"mode": Attribute(STRING, choices=("constant", "reflect", "edge"))},
    ),
    "Expand": Operator(layout.expand, (2, 2)),
    "Identity": Operator(layout.identity),
    "Dropout": Operator(layout.dropout, (1, 3), {"seed": Attribute(INT)}),
    "Shape": Operator(
        layout.shape,
        attributes={
            "start": Attribute(INT, since=15),
            "end": Attribute(INT, since=15),
        },
    ),
    "Constant": Operator(
        layout.constant,
        (0, 0),
        {
            "value": Attribute(TENSOR),
            "value_float": Attribute(FLOAT),
            "value_floats": Attribute(FLOATS),
            "value_int": Attribute(INT),
            "value_ints": Attribute(INTS),
        },
    ),
    "ConstantOfShape": Operator(layout.constant_of_shape, attributes={"value": Attribute(TENSOR)}),
}
"""Operators by name."""
