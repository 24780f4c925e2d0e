"""Makes random graphs of the operators that `model_store.onnx` accepts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from model_store.onnx import tensors
from model_store.onnx.messages import NODE, TENSOR
from model_store.onnx.tensors import FLOATS, Dims, N, Tensor
from model_store.onnx.walk import Walk
from model_store.onnx.wire import Refusal, decode
from tests.model_store.onnx.networks import Graph, TensorProto, helper, numpy_helper

UNARY = ("Relu", "Sigmoid", "Erf", "Tanh", "Exp", "Sqrt", "Abs", "Neg", "HardSwish", "Identity")
BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")


class RandomGraph(Graph):
    """A graph that grows by random nodes. `walk` has the shapes that this project computes."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        side = self.dice.choice((5, 8, 9))
        channels = self.dice.choice((1, 2, 4, 6))
        opset = self.dice.choice((13, 15, 17, 18, 20, 21))
        super().__init__(("n", channels, side, side), opset=opset, seed=seed)
        image = Tensor(tensors.FLOAT, (N, channels, side, side))
        self.refused: list[str] = []
        self.walk = Walk(opset, {"pixels": image}, {"node": [], "output": [{}]})

    def grow(self, nodes: int) -> None:
        """Adds random nodes. Nodes that are rejected are left out."""
        for _ in range(nodes):
            name = self.dice.choice([*self.walk.values])
            make = self.dice.choice(TEMPLATES)
            try:
                make(self, name, self.walk.values[name])
            except Refusal as refusal:
                self.refused.append(refusal.what)
                self.nodes.pop()

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = super().add(op, *inputs, outputs=outputs, **attributes)
        self.walk.step(len(self.nodes) - 1, decode(self.nodes[-1].SerializeToString(), NODE))
        return name

    def array(self, array: Any) -> str:
        name = super().array(array)
        proto = decode(self.parameters[-1].SerializeToString(), TENSOR)
        self.walk.values[name] = tensors.read(proto, name)
        return name

    def all_outputs(self) -> bytes:
        """The file, with every computed value as an output."""
        names = [name for node in self.nodes for name in node.output]
        codes = {dtype: code for code, dtype in tensors.TYPES.items()}
        described = [
            helper.make_tensor_value_info(name, codes[self.walk.values[name].dtype], None)
            for name in names
        ]
        graph = helper.make_graph(self.nodes, "net", self.inputs, described, self.parameters)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return bytes(model.SerializeToString())


def _unary(g: RandomGraph, x: str, t: Tensor) -> None:
    g.add(g.dice.choice(UNARY), x)


def _parametric(g: RandomGraph, x: str, t: Tensor) -> None:
    choices: list[tuple[str, dict[str, Any]]] = [
        ("LeakyRelu", {"alpha": 0.2}),
        ("HardSigmoid", {"alpha": 0.1, "beta": 0.4}),
        ("Softmax", {"axis": g.dice.randint(-2, 3)}),
        ("LogSoftmax", {"axis": g.dice.randint(-2, 3)}),
        ("Gelu", {"approximate": g.dice.choice(("none", "tanh"))}),
        ("LRN", {"size": g.dice.choice((1, 3, 5))}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
        ("Flatten", {"axis": g.dice.randint(-2, 3)}),
        ("Dropout", {}),
    ]
    op, attributes = g.dice.choice(choices)
    g.add(op, x, **attributes)


def _binary(g: RandomGraph, x: str, t: Tensor) -> None:
    names = [name for name, value in g.walk.values.items() if value.dtype == t.dtype]
    dims = [dim if dim % N and g.dice.random() < 0.6 else 1 for dim in t.dims]
    dims = dims[g.dice.randrange(len(dims) + 1) :]
    other = g.dice.choice(names) if g.dice.random() < 0.5 else g.weights(*dims)
    pair = [x, other] if g.dice.random() < 0.5 else [other, x]
    if g.dice.random() < 0.1:
        g.add("Where", g.add("Equal", *pair), *pair)
    elif g.dice.random() < 0.1:
        g.add("PRelu", *pair)
    else:
        g.add(g.dice.choice(BINARY), *pair)


def _conv(g: RandomGraph, x: str, t: Tensor) -> None:
    spatial = max(1, t.rank - 2)
    channels = t.dims[1] % N or 1
    group = g.dice.choice([1, channels, g.dice.choice((1, 2))])
    filters = group * g.dice.randint(1, 3)
    kernel = [g.dice.randint(1, 3) for _ in range(spatial)]
    attributes = _windows(g, kernel)
    if g.dice.random() < 0.5:
        attributes["kernel_shape"] = kernel
    bias = [g.weights(filters)] if g.dice.random() < 0.5 else []
    if g.dice.random() < 0.5:
        attributes["dilations"] = [g.dice.randint(1, 2) for _ in kernel]
    weights = g.weights(filters, max(1, channels // group), *kernel)
    g.add("Conv", x, weights, *bias, group=group, **attributes)


def _windows(g: RandomGraph, kernel: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if g.dice.random() < 0.7:
        found["strides"] = [g.dice.randint(1, 3) for _ in kernel]
    if g.dice.random() < 0.3:
        found["auto_pad"] = g.dice.choice(("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"))
    elif g.dice.random() < 0.7:
        found["pads"] = [g.dice.randrange(size) for size in kernel * 2]
    return found


def _pool(g: RandomGraph, x: str, t: Tensor) -> None:
    kernel = [g.dice.randint(1, 4) for _ in range(max(1, t.rank - 2))]
    attributes = _windows(g, kernel) | {"ceil_mode": g.dice.randrange(2), "kernel_shape": kernel}
    if g.dice.random() < 0.5:
        g.add("AveragePool", x, count_include_pad=g.dice.randrange(2), **attributes)
    else:
        if g.dice.random() < 0.3:
            attributes["dilations"] = [g.dice.randint(1, 2) for _ in kernel]
        g.add("MaxPool", x, **attributes)


def _norm(g: RandomGraph, x: str, t: Tensor) -> None:
    channels = t.dims[1] % N or 1
    match g.dice.randrange(3):
        case 0:
            many = [g.array(np.ones(channels, np.float32)) for _ in range(4)]
            g.add("BatchNormalization", x, *many)
        case 1:
            g.add("InstanceNormalization", x, g.weights(channels), g.weights(channels))
        case _:
            axis = g.dice.randrange(t.rank)
            scale = g.weights(*(dim % N or 1 for dim in t.dims[axis:]))
            g.add("LayerNormalization", x, scale, axis=axis - g.dice.choice((0, t.rank)))


def _reduce(g: RandomGraph, x: str, t: Tensor) -> None:
    axes = g.dice.sample(range(t.rank), g.dice.randint(1, t.rank))
    kept = g.dice.randrange(2)
    if g.opset < 18:
        g.add("ReduceMean", x, axes=axes, keepdims=kept)
    else:
        g.add("ReduceMean", x, g.ints(*axes), keepdims=kept)


def _matmul(g: RandomGraph, x: str, t: Tensor) -> None:
    inner, outer = t.dims[-1] % N or 1, g.dice.randint(1, 5)
    match g.dice.randrange(4):
        case 0:
            g.add("MatMul", x, g.weights(inner, outer))
        case 1:
            swapped = [*range(t.rank - 2), t.rank - 1, t.rank - 2]
            g.add("MatMul", x, g.add("Transpose", x, perm=swapped))
        case 2:
            g.add("MatMul", g.weights(outer, t.dims[-2] % N or 1), x)
        case _:
            flags = {"transA": g.dice.randrange(2), "transB": g.dice.randrange(2)}
            rows = t.dims[-2] % N or 1 if flags["transA"] else inner
            shape = (outer, rows) if flags["transB"] else (rows, outer)
            g.add("Gemm", x, g.weights(*shape), g.weights(outer), alpha=0.5, **flags)


def _reshape(g: RandomGraph, x: str, t: Tensor) -> None:
    """Splits or joins dimensions, also with a shape that is computed from the shape of `x`."""
    dims: list[int] = []
    for dim in t.dims:
        factor = g.dice.choice([f for f in (1, 2, 3, 4) if dim % f == 0])
        if dims and g.dice.random() < 0.3:
            dims[-1] *= dim
        elif factor > 1 and g.dice.random() < 0.5:
            dims += [dim // factor, factor]
        else:
            dims.append(dim)
    parts = []
    for at, dim in enumerate(dims):
        if dim % N == 0 and t.batch_axis is not None:
            if g.dice.random() < 0.4:
                parts.append(g.ints(-1))
                continue
            shape = g.add("Shape", x)
            part = g.add("Gather", shape, g.ints(t.batch_axis), axis=0)
            have, want = t.dims[t.batch_axis] // N, dim // N
            part = g.add("Div", part, g.ints(have)) if g.dice.random() < 0.5 or have != 1 else part
            parts.append(g.add("Mul", part, g.ints(want)) if want != 1 else part)
        elif at < t.rank and t.dims[at] == dim and g.dice.random() < 0.3:
            parts.append(g.ints(0))
        else:
            parts.append(g.ints(dim))
    g.add("Reshape", x, g.add("Concat", *parts, axis=0))


def _axes(g: RandomGraph, x: str, t: Tensor) -> None:
    ones = [at for at, dim in enumerate(t.dims) if dim == 1]
    match g.dice.randrange(3):
        case 0 if ones:
            g.add("Squeeze", x, g.ints(*g.dice.sample(ones, g.dice.randint(1, len(ones)))))
        case 1:
            g.add("Unsqueeze", x, g.ints(g.dice.randint(-t.rank - 1, t.rank)))
        case _:
            g.add("Transpose", x, perm=g.dice.sample(range(t.rank), t.rank))


def _join(g: RandomGraph, x: str, t: Tensor) -> None:
    parts = [x] * g.dice.randint(1, 3)
    g.add("Concat", *parts, axis=g.dice.randint(-t.rank, t.rank - 1))


def _cut(g: RandomGraph, x: str, t: Tensor) -> None:
    axis = g.dice.randrange(t.rank)
    length = t.dims[axis] % N or 1
    match g.dice.randrange(4):
        case 0:
            ends = (-1, length, (1 << 63) - 1, 2, -(1 << 63))
            many = g.dice.randint(-length - 1, length), g.dice.choice(ends), axis
            step = g.dice.choice((1, 2, -1, 3))
            g.add("Slice", x, *(g.ints(number) for number in (*many, step)))
        case 1:
            first = g.dice.randint(1, max(1, length - 1))
            g.add("Split", x, g.ints(first, length - first), outputs=2, axis=axis)
        case 2:
            more = {"num_outputs": 2} if g.opset >= 18 else {}
            g.add("Split", x, outputs=2, axis=axis, **more)
        case _:
            shape = g.dice.choice([(), (1,), (3,), (2, 2)])
            places = np.random.default_rng(length).integers(-length, length, shape)
            g.add("Gather", x, g.array(np.asarray(places)), axis=axis)


def _grow(g: RandomGraph, x: str, t: Tensor) -> None:
    if g.dice.random() < 0.6:
        pads = [0 if dim % N == 0 else g.dice.choice((0, 0, 1, 2)) for dim in t.dims * 2]
        mode = g.dice.choice(("constant", "reflect", "edge"))
        g.add("Pad", x, g.ints(*pads), mode=mode)
    elif t.batch_axis is None or t.dims[t.batch_axis] == N:
        shape = g.add("Shape", x)
        parts = [
            g.ints(2) if dim == 1 else g.add("Slice", shape, g.ints(at), g.ints(at + 1), g.ints(0))
            for at, dim in enumerate(t.dims)
        ]
        g.add("Expand", x, g.add("Concat", *parts, axis=0))


def _quantize(g: RandomGraph, x: str, t: Tensor) -> None:
    axis = g.dice.randrange(t.rank)
    shape = g.dice.choice([(), (t.dims[axis] % N or 1,)])
    scale = g.array(np.full(shape, 0.1, np.float32))
    zero = g.array(np.zeros(shape, g.dice.choice((np.int8, np.uint8))))
    y = g.add("QuantizeLinear", x, scale, zero, axis=axis)
    g.add("DequantizeLinear", y, scale, zero, axis=axis)


def _cast(g: RandomGraph, x: str, t: Tensor) -> None:
    names = ("FLOAT16", "DOUBLE", "INT32", "BOOL")
    narrow = g.add("Cast", x, to=TensorProto.DataType.Value(g.dice.choice(names)))
    g.add("Cast", narrow, to=TensorProto.FLOAT)


def _clip(g: RandomGraph, x: str, t: Tensor) -> None:
    g.add("Clip", x, g.array(np.array(-1, np.float32)), g.array(np.array(1, np.float32)))


def _constant(g: RandomGraph, x: str, t: Tensor) -> None:
    value = np.ones(g.dice.choice([(), (1,), (2, 1)]), np.float32)
    g.add("Add", x, g.add("Constant", value=numpy_helper.from_array(value)))


def _float(make: Callable[[RandomGraph, str, Tensor], None]) -> Callable[..., None]:
    def only(g: RandomGraph, x: str, t: Tensor) -> None:
        if t.dtype in FLOATS[:1] and t.rank >= 2:
            make(g, x, t)

    return only


MAKERS = (
    *(_unary, _parametric, _binary, _conv, _pool, _norm, _reduce, _matmul, _reshape, _axes, _join),
    *(_cut, _grow, _quantize, _cast, _clip, _constant),
)
TEMPLATES = [_float(make) for make in MAKERS]


def with_images(dims: Dims, images: int) -> tuple[int, ...]:
    """The shape for a number of images."""
    return tuple(dim if dim % N else dim // N * images for dim in dims)
