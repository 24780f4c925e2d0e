"""Architectures: builds the graphs of GluonCV's networks for CIFAR, without MXNet and GluonCV.

Parameters have the same names and shapes as in a `.params` file that was saved from
`gluoncv.model_zoo.get_model(name, classes=...)` with `save_parameters`.

- `cifar_resnet*_v1`: He et al. 2015, arXiv 1512.03385
- `cifar_resnet*_v2`: He et al. 2016, arXiv 1603.05027
- `cifar_wideresnet*`: Zagoruyko and Komodakis 2016, arXiv 1605.07146
- `cifar_resnext29_*`: Xie et al. 2016, arXiv 1611.05431
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from model_store.architectures import UnknownArchitecture
from model_store.onnx.graph import Graph

CHANNELS = 3
"""Number of channels of an image."""


def build(architecture: str, classes: int, input_: str) -> Graph:
    """Return the graph of a network that computes logits (n, classes) for (n, 3, 32, 32).

    Args:
        architecture: One of `model_store.architectures.ARCHITECTURES`.
        classes: Number of classes.
        input_: Name of the graph's input.

    Raises:
        UnknownArchitecture: There is no such architecture.
    """
    if architecture not in BUILDERS:
        raise UnknownArchitecture(architecture)
    graph = Graph(input_, CHANNELS)
    features = BUILDERS[architecture](graph)
    graph.dense(graph.average(features, "pool"), "output", classes)
    return graph


def _resnet_v1(graph: Graph, depth: int) -> str:
    x = graph.batch_norm(graph.convolution(graph.input, "features.0", 16, 3), "features.1")
    for name, channels, stride in _blocks(2, (depth - 2) // 6, 16):
        y = _normalized(graph, x, f"{name}.body.0", f"{name}.body.1", channels, 3, stride)
        y = graph.relu(y, f"{name}.body.2")
        y = _normalized(graph, y, f"{name}.body.3", f"{name}.body.4", channels, 3)
        x = _joined(graph, x, y, name, stride, graph.channels(x) != channels)
    return x


def _resnext(graph: Graph, depth: int, cardinality: int, width: int) -> str:
    x = _normalized(graph, graph.input, "features.0", "features.1", 64, 3)
    x = graph.relu(x, "features.2")
    for name, channels, stride in _blocks(3, (depth - 2) // 9, 64):
        inner = cardinality * (channels * width // 64)
        y = _normalized(graph, x, f"{name}.body.0", f"{name}.body.1", inner, 1)
        y = graph.relu(y, f"{name}.body.2")
        y = graph.convolution(y, f"{name}.body.3", inner, 3, stride, cardinality)
        y = graph.relu(graph.batch_norm(y, f"{name}.body.4"), f"{name}.body.5")
        y = _normalized(graph, y, f"{name}.body.6", f"{name}.body.7", 4 * channels, 1)
        x = _joined(graph, x, y, name, stride, name.endswith(".0"))
    return x


def _resnet_v2(graph: Graph, depth: int) -> str:
    x = graph.batch_norm(graph.input, "features.0", scale=False)
    x = graph.convolution(x, "features.1", 16, 3)
    for name, channels, stride in _blocks(2, (depth - 2) // 6, 16):
        x = _preactivated(graph, x, name, channels, stride, around="input")
    return graph.relu(graph.batch_norm(x, "features.5"), "features.6")


def _wide_resnet(graph: Graph, depth: int, factor: int) -> str:
    x = graph.batch_norm(graph.input, "features.0", scale=False)
    x = _normalized(graph, x, "features.1", "features.2", 16, 3)
    for name, channels, stride in _blocks(3, (depth - 4) // 6, 16 * factor):
        x = _preactivated(graph, x, name, channels, stride, around="activation")
    return graph.relu(graph.batch_norm(x, "features.6"), "features.7")


def _blocks(first: int, blocks: int, channels: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the channels and the stride of each block of three stages.

    Args:
        first: Number of the first stage in the names of parameters.
        blocks: Number of blocks in each stage.
        channels: Number of channels in the first stage. The number doubles with each stage.
    """
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            yield f"features.{first + stage}.{block}", channels << stage, stride


def _normalized(
    graph: Graph, x: str, name: str, norm: str, channels: int, kernel: int, stride: int = 1
) -> str:
    """Add a convolution, which is called `name`, and a batch normalization, called `norm`."""
    return graph.batch_norm(graph.convolution(x, name, channels, kernel, stride), norm)


def _joined(graph: Graph, x: str, y: str, name: str, stride: int, downsample: bool) -> str:
    """Add operators that add a block's input `x`, or its projection, to `y` and apply a ReLU."""
    if downsample:
        names = f"{name}.downsample.0", f"{name}.downsample.1"
        x = _normalized(graph, x, *names, graph.channels(y), 1, stride)
    return graph.relu(graph.add(x, y, f"{name}.sum"), f"{name}.relu")


def _preactivated(graph: Graph, x: str, name: str, channels: int, stride: int, around: str) -> str:
    """Add a block whose normalizations are before its convolutions.

    Args:
        graph: Graph to add to.
        x: Name of the block's input.
        name: Name of the block.
        channels: Number of channels of the block's output.
        stride: Stride of the first convolution.
        around: Tensor that is projected if the number of channels changes: the block's `input`, or
            its first `activation`.
    """
    y = activation = graph.relu(graph.batch_norm(x, f"{name}.bn1"), f"{name}.relu1")
    if graph.channels(x) != channels:
        projected = activation if around == "activation" else x
        x = graph.convolution(projected, f"{name}.downsample", channels, 1, stride)
    y = graph.convolution(y, f"{name}.conv1", channels, 3, stride)
    y = graph.relu(graph.batch_norm(y, f"{name}.bn2"), f"{name}.relu2")
    y = graph.convolution(y, f"{name}.conv2", channels, 3)
    return graph.add(y, x, f"{name}.sum")


BUILDERS: dict[str, Callable[[Graph], str]] = {
    **{f"cifar_resnet{depth}_v1": partial(_resnet_v1, depth=depth) for depth in (20, 56, 110)},
    **{f"cifar_resnet{depth}_v2": partial(_resnet_v2, depth=depth) for depth in (20, 56, 110)},
    **{
        f"cifar_wideresnet{depth}_{factor}": partial(_wide_resnet, depth=depth, factor=factor)
        for depth, factor in ((16, 10), (28, 10), (40, 8), (16, 3))
    },
    "cifar_resnext29_32x4d": partial(_resnext, depth=29, cardinality=32, width=4),
    "cifar_resnext29_16x64d": partial(_resnext, depth=29, cardinality=16, width=64),
}
"""Name -> function that adds a network's features to a graph, and returns the last operator."""
