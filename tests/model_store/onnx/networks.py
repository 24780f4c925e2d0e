"""Builds `.onnx` files with onnx.helper: small graphs, and networks of the shapes of known ones.

Parameters are random, since only their shapes matter here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

OPSET = 17
FLOAT = TensorProto.FLOAT
Dims = Sequence[int | str | None]


class Graph:
    """Collects nodes and parameters. Methods return the name of what they add."""

    def __init__(
        self,
        shape: Dims = ("n", 3, 8, 8),
        *,
        opset: int = OPSET,
        dtype: int = FLOAT,
        seed: int = 0,
    ) -> None:
        self.nodes: list[Any] = []
        self.parameters: list[Any] = []
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info("pixels", dtype, shape)]
        self.channels = int(shape[1] or 0) if len(shape) > 1 else 0
        self._added = 0
        self._random = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a node and returns the name of its first output."""
        names = [f"v{self._added}" + (f"_{at}" if at else "") for at in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"node{self._added}", **attributes))
        self._added += 1
        return names[0]

    def array(self, array: NDArray[Any]) -> str:
        """Adds a parameter."""
        name = f"p{len(self.parameters)}"
        self.parameters.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, *shape: int, dtype: Any = np.float32) -> str:
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
        values = self._random.standard_normal(shape, np.float32) * np.float32(scale)
        return self.array(values.astype(dtype))

    def ints(self, *numbers: int) -> str:
        return self.array(np.array(numbers, np.int64))

    def conv(self, x: str, filters: int, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        """Adds a convolution with a bias that keeps the size if the stride is 1."""
        weights = self.weights(filters, self.channels // group, kernel, kernel)
        self.channels = filters
        return self.add(
            "Conv",
            *(x, weights, self.weights(filters)),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
            group=group,
        )

    def norm(self, x: str) -> str:
        many = [self.weights(self.channels) for _ in range(3)]
        variance = self.array(np.ones(self.channels, np.float32))
        return self.add("BatchNormalization", x, *many, variance)

    def block(self, x: str, filters: int, *more: int, act: str = "Relu") -> str:
        return self.add(act, self.norm(self.conv(x, filters, *more)))

    def classify(self, x: str, inputs: int, classes: int = 1000) -> str:
        return self.add("Gemm", x, self.weights(classes, inputs), self.weights(classes), transB=1)

    def pooled(self, x: str) -> str:
        return self.add("Flatten", self.add("GlobalAveragePool", x))

    def pool(
        self, x: str, op: str = "MaxPool", kernel: int = 3, stride: int = 2, pad: int = 1
    ) -> str:
        return self.add(op, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def proto(self, output: str, shape: Dims | None = None, dtype: int = FLOAT) -> Any:
        """The finished ModelProto."""
        described = helper.make_tensor_value_info(output, dtype, shape)
        graph = helper.make_graph(self.nodes, "net", self.inputs, [described], self.parameters)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tests")

    def file(self, output: str, shape: Dims | None = None, dtype: int = FLOAT) -> bytes:
        """The finished file."""
        return bytes(self.proto(output, shape, dtype).SerializeToString())


def small(opset: int = OPSET) -> bytes:
    """A network with a convolution, a shortcut and a classifier."""
    graph = Graph(opset=opset)
    x = graph.block("pixels", 4)
    x = graph.add("Add", x, graph.block(x, 4))
    return graph.file(graph.classify(graph.pooled(x), 4, 10), ["n", 10])


def resnet50(side: int = 224) -> bytes:
    graph = Graph(("n", 3, side, side))
    x = graph.pool(graph.block("pixels", 64, 7, 2))
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        for at in range(count):
            stride = 2 if stage and not at else 1
            channels = graph.channels
            y = graph.block(graph.block(x, width, 1), width, 3, stride)
            y = graph.norm(graph.conv(y, 4 * width, 1))
            if not at:
                graph.channels = channels
                x = graph.norm(graph.conv(x, 4 * width, 1, stride))
            x = graph.add("Relu", graph.add("Add", x, y))
    return graph.file(graph.classify(graph.pooled(x), 2048), ["n", 1000])


def densenet201(side: int = 224) -> bytes:
    graph = Graph(("n", 3, side, side))
    x = graph.pool(graph.block("pixels", 64, 7, 2))
    for stage, count in enumerate((6, 12, 48, 32)):
        parts, channels = [x], graph.channels
        for _ in range(count):
            graph.channels = channels
            y = graph.add("Concat", *parts, axis=1) if len(parts) > 1 else x
            y = graph.conv(graph.add("Relu", graph.norm(y)), 128, 1)
            parts.append(graph.conv(graph.add("Relu", graph.norm(y)), 32))
            channels += 32
        x, graph.channels = graph.add("Concat", *parts, axis=1), channels
        if stage < 3:
            x = graph.conv(graph.add("Relu", graph.norm(x)), channels // 2, 1)
            x = graph.pool(x, "AveragePool", 2, 2, 0)
    channels = graph.channels
    return graph.file(graph.classify(graph.pooled(graph.add("Relu", graph.norm(x))), channels))


def vgg19(side: int = 224) -> bytes:
    graph = Graph(("n", 3, side, side))
    x = "pixels"
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            x = graph.add("Relu", graph.conv(x, width))
        x = graph.pool(x, "MaxPool", 2, 2, 0)
    inputs = 512 * (side // 32) ** 2
    # As PyTorch exports x.view(x.size(0), -1).
    images = graph.add("Gather", graph.add("Shape", x), graph.array(np.array(0)), axis=0)
    images = graph.add("Unsqueeze", images, graph.ints(0))
    rows = graph.add("Concat", images, graph.ints(-1), axis=0)
    x = graph.add("Reshape", x, rows)
    for width in (4096, 4096):
        x = graph.add("Dropout", graph.add("Relu", graph.classify(x, inputs, width)))
        inputs = width
    return graph.file(graph.classify(x, inputs))


def squeezenet(side: int = 224) -> bytes:
    graph = Graph(("n", 3, side, side))
    x = graph.add("Relu", graph.conv("pixels", 64, 3, 2))
    for number, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        if number in (0, 2, 4):
            x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        x = graph.add("Relu", graph.conv(x, width, 1))
        left = graph.add("Relu", graph.conv(x, 4 * width, 1))
        graph.channels = width
        right = graph.add("Relu", graph.conv(x, 4 * width))
        x, graph.channels = graph.add("Concat", left, right, axis=1), 8 * width
    x = graph.add("Relu", graph.conv(graph.add("Dropout", x), 1000, 1))
    return graph.file(graph.add("Softmax", graph.pooled(x), axis=1))


def mobilenet_v2(side: int = 224) -> bytes:
    """With Clip as ReLU6."""
    graph = Graph(("n", 3, side, side))
    bounds = [graph.array(np.array(value, np.float32)) for value in (0, 6)]

    def block(x: str, *layer: int) -> str:
        return graph.add("Clip", graph.conv(x, *layer), *bounds)

    x = block("pixels", 32, 3, 2)
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for expansion, width, count, first in (*table, (6, 160, 3, 2), (6, 320, 1, 1)):
        for at in range(count):
            given, wide = graph.channels, graph.channels * expansion
            y = block(x, wide, 1) if expansion > 1 else x
            y = graph.conv(block(y, wide, 3, 1 if at else first, wide), width, 1)
            x = graph.add("Add", x, y) if at and given == width else y
    x = graph.add("ReduceMean", block(x, 1280, 1), axes=[2, 3], keepdims=0)
    return graph.file(graph.classify(x, 1280))


def efficientnet_b4(side: int = 380) -> bytes:
    """With squeeze and excitation, and Sigmoid and Mul as SiLU."""
    graph = Graph(("n", 3, side, side))

    def silu(x: str) -> str:
        return graph.add("Mul", x, graph.add("Sigmoid", x))

    x = silu(graph.conv("pixels", 48, 3, 2))
    table = ((1, 3, 1, 24, 2), (6, 3, 2, 32, 4), (6, 5, 2, 56, 4), (6, 3, 2, 112, 6))
    for expansion, kernel, first, width, count in (
        *table,
        *((6, 5, 1, 160, 6), (6, 5, 2, 272, 8), (6, 3, 1, 448, 2)),
    ):
        for at in range(count):
            given, wide = graph.channels, graph.channels * expansion
            y = silu(graph.conv(x, wide, 1)) if expansion > 1 else x
            y = silu(graph.conv(y, wide, kernel, 1 if at else first, wide))
            squeezed = silu(graph.conv(graph.add("GlobalAveragePool", y), given // 4, 1))
            gate = graph.add("Sigmoid", graph.conv(squeezed, wide, 1))
            y = graph.conv(graph.add("Mul", y, gate), width, 1)
            x = graph.add("Add", x, y) if at and given == width else y
    return graph.file(graph.classify(graph.pooled(silu(graph.conv(x, 1792, 1))), 1792))


def vit(
    side: int = 224, width: int = 192, depth: int = 12, heads: int = 3, classes: int = 1000
) -> bytes:
    """A vision transformer as PyTorch exports it: shapes are computed from that of the images."""
    graph = Graph(("n", 3, side, side))
    patches, size = (side // 16) ** 2, width // heads
    x = graph.add(
        "Conv", "pixels", graph.weights(width, 3, 16, 16), graph.weights(width), strides=[16, 16]
    )
    count = graph.add("Gather", graph.add("Shape", "pixels"), graph.array(np.array(0)), axis=0)
    one = graph.add("Unsqueeze", count, graph.ints(0))

    def shaped(x: str, *rest: int) -> str:
        return graph.add("Reshape", x, graph.add("Concat", one, graph.ints(*rest), axis=0))

    x = graph.add("Transpose", shaped(x, width, patches), perm=[0, 2, 1])
    # As PyTorch exports the expansion of the class token to n images.
    wanted = graph.add("Concat", one, graph.ints(-1, -1), axis=0)
    ones = graph.add(
        "ConstantOfShape", graph.ints(3), value=numpy_helper.from_array(np.array([1], np.int64))
    )
    open_ = graph.add("Equal", wanted, graph.add("Mul", ones, graph.array(np.array(-1))))
    token = graph.add("Expand", graph.weights(1, 1, width), graph.add("Where", open_, ones, wanted))
    x = graph.add(
        "Add", graph.add("Concat", token, x, axis=1), graph.weights(1, patches + 1, width)
    )

    def norm(x: str) -> str:
        scales = graph.weights(width), graph.weights(width)
        return graph.add("LayerNormalization", x, *scales, axis=-1)

    def linear(x: str, inputs: int, outputs: int) -> str:
        return graph.add(
            "Add", graph.add("MatMul", x, graph.weights(inputs, outputs)), graph.weights(outputs)
        )

    for _ in range(depth):
        y = shaped(linear(norm(x), width, 3 * width), patches + 1, 3, heads, size)
        y = graph.add("Transpose", y, perm=[2, 0, 3, 1, 4])
        q, k, v = (graph.add("Gather", y, graph.array(np.array(at)), axis=0) for at in range(3))
        scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = graph.add("Mul", scores, graph.array(np.array(size**-0.5, np.float32)))
        y = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
        y = shaped(graph.add("Transpose", y, perm=[0, 2, 1, 3]), patches + 1, width)
        x = graph.add("Add", x, linear(y, width, width))
        y = linear(norm(x), width, 4 * width)
        half = graph.add("Mul", y, graph.array(np.array(0.5, np.float32)))
        erf = graph.add("Erf", graph.add("Div", y, graph.array(np.array(2**0.5, np.float32))))
        y = graph.add("Mul", half, graph.add("Add", erf, graph.array(np.array(1, np.float32))))
        x = graph.add("Add", x, linear(y, 4 * width, width))
    x = graph.add("Gather", norm(x), graph.array(np.array(0)), axis=1)
    return graph.file(graph.classify(x, width, classes))


KNOWN: dict[str, Callable[[int], bytes]] = {
    "resnet50": resnet50,
    "densenet201": densenet201,
    "vgg19": vgg19,
    "squeezenet": squeezenet,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_b4": efficientnet_b4,
    "vit": vit,
}
"""Networks by name. Each takes the height and width of the images."""


def edited(content: bytes, change: Callable[[Any], object]) -> bytes:
    """The file with a change to its ModelProto."""
    model = onnx.load_from_string(content)
    change(model)
    return bytes(model.SerializeToString())
