"""Nodes are followed in their order, and memory and computation are added up and limited."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_store.onnx import walk
from model_store.onnx.file import check_onnx
from model_store.onnx.wire import Refusal
from tests.model_store.onnx.networks import Graph, edited, small

SIDE = 8
ONE = 4 * 3 * SIDE * SIDE
"""Bytes of a tensor of the input's shape."""


def test_walk_counts_memory_to_the_last_use() -> None:
    """A chain needs two tensors at a time; a tensor that is used later stays."""
    graph = Graph()
    x = graph.add("Relu", graph.add("Relu", graph.add("Relu", "pixels")))
    found = check_onnx(graph.file(x))
    assert (found.live_bytes, found.largest_bytes) == (2 * ONE, ONE)
    graph.add("Add", x, "pixels")
    assert check_onnx(graph.file("v3")).live_bytes == 3 * ONE


def test_walk_frees_results_that_no_node_uses() -> None:
    """A result without a use is needed while it is computed."""
    graph = Graph()
    for _ in range(5):
        graph.add("Relu", "pixels")
    assert check_onnx(graph.file("v4")).live_bytes == 2 * ONE


def test_walk_counts_windows_of_convolutions() -> None:
    """Libraries copy them while the convolution computes."""
    graph = Graph()
    found = check_onnx(graph.file(graph.conv("pixels", 5)))
    assert found.live_bytes == ONE + 4 * SIDE * SIDE * (5 + 3 * 9)
    assert found.multiply_adds == SIDE * SIDE * 5 * 3 * 9
    assert found.operators == {"Conv": 1}


def test_walk_separates_what_is_computed_from_parameters() -> None:
    """Libraries compute dequantized weights once and keep them."""
    graph = Graph(("n", 8))
    weights = graph.array(np.zeros((8, 10), np.int8))
    scale = graph.array(np.array(0.1, np.float32))
    x = graph.add("MatMul", "pixels", graph.add("DequantizeLinear", weights, scale))
    found = check_onnx(graph.file(x))
    assert (found.fixed_bytes, found.live_bytes) == (4 * 80, 4 * 18)


def refuse(content: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        check_onnx(content)
    assert caught.value.do
    return caught.value.what


def test_walk_limits_memory() -> None:
    """Many tensors that are needed at the same time."""
    graph = Graph(("n", 1, 4096, 4096))
    held = [graph.add("Relu", "pixels") for _ in range(8)]
    found = check_onnx(graph.file(graph.add("Max", *held[:6])))
    assert found.live_bytes == walk.MAX_LIVE_BYTES
    assert "bytes of tensors per image; 536,870,912" in refuse(graph.file(graph.add("Max", *held)))


def test_walk_limits_what_is_computed_from_parameters() -> None:
    """A small file must not grow when it is loaded."""
    graph = Graph()
    scale = graph.array(np.zeros((4096, 1), np.float32))
    row = graph.array(np.zeros((1, 4096), np.float32))
    for _ in range(16):
        graph.add("Mul", scale, row)
    assert check_onnx(graph.file(graph.add("Relu", "pixels"))).fixed_bytes == 1 << 30
    graph.add("Mul", scale, row)
    message = refuse(graph.file(graph.add("Relu", "pixels")))
    assert "are computed from parameters; 1,073,741,824 are allowed" in message


def test_walk_limits_multiply_adds() -> None:
    """Small tensors, but products that take long."""
    graph = Graph(("n", 1, 4096, 1024))
    x = graph.add("Transpose", "pixels", perm=[0, 1, 3, 2])
    product = graph.add("MatMul", "pixels", x)
    for _ in range(4):
        product = graph.add("MatMul", product, product)
    assert "multiply-adds per image; 100,000,000,000 are" in refuse(graph.file(product))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: setattr(g.node[0], "op_type", "Resize"), "node 0 (Resize 'node0'): this opera"),
        (lambda g: setattr(g.node[0], "op_type", "ConvTranspose"), "operator is not supported"),
        (lambda g: setattr(g.node[0], "op_type", "Tile"), "operator is not supported"),
        (lambda g: setattr(g.node[0], "op_type", "If"), "operator is not supported"),
        (lambda g: setattr(g.node[0], "domain", "com.microsoft"), "of the domain 'com.microsoft'"),
        (lambda g: setattr(g.node[0], "overload", "a"), "of the domain"),
        (lambda g: g.node[2].input.append("pixels"), "2 inputs and 1 outputs are not supported"),
        (lambda g: g.node[2].output.append("more"), "1 inputs and 2 outputs are not supported"),
        (lambda g: g.node[2].ClearField("output"), "1 inputs and 0 outputs are not supported"),
        (lambda g: g.node[2].ClearField("input"), "0 inputs and 1 outputs are not supported"),
        (lambda g: g.node[2].input.__setitem__(0, "v6"), "'v6' is not defined before it is used"),
        (lambda g: g.node[2].input.__setitem__(0, "v2"), "'v2' is not defined before it is used"),
        (lambda g: g.node[2].input.__setitem__(0, ""), "input 0 is missing"),
        (lambda g: g.node[2].output.__setitem__(0, "v1"), "'v1' is empty or defined twice"),
        (lambda g: g.node[2].output.__setitem__(0, "p0"), "'p0' is empty or defined twice"),
        (lambda g: g.node[2].output.__setitem__(0, "pixels"), "'pixels' is empty or defined twice"),
        (lambda g: g.node[2].output.__setitem__(0, ""), "'' is empty or defined twice"),
        (lambda g: g.node[0].attribute.add(name="x", type=2, i=1), "'x' is not supported"),
        (lambda g: g.node.insert(0, g.node.pop()), "is not defined before it is used"),
    ],
)
def test_walk_rejects_nodes(change: Any, words: str) -> None:
    """Unknown operators, other domains, names out of order, twice or missing."""
    assert words in refuse(edited(small(), lambda model: change(model.graph)))


def test_walk_rejects_operators_of_later_operator_sets() -> None:
    """LayerNormalization is defined since operator set 17."""
    graph = Graph(("n", 8), opset=15)
    x = graph.add("LayerNormalization", "pixels", graph.weights(8))
    assert "not supported in operator set 15" in refuse(graph.file(x))


def grown(op: str, *shape: int, **attributes: Any) -> bytes:
    """A graph with an operator whose second input is a list of numbers."""
    graph = Graph(("n", 1, 8, 8))
    return graph.file(graph.add(op, "pixels", graph.ints(*shape), **attributes))


def test_walk_rejects_bombs() -> None:
    """A few bytes that would make a huge tensor."""
    assert "elements per image" in refuse(grown("Expand", 1, 1 << 20, 8, 8))
    assert "elements per image" in refuse(grown("Pad", 0, 0, 0, 0, 0, 0, 1 << 20, 1 << 10))
    graph = Graph(("n", 1, 8, 8))
    graph.add("ConstantOfShape", graph.ints(1 << 15, 1 << 15))
    assert "computed from parameters" in refuse(graph.file(graph.add("Relu", "pixels")))
    del graph.nodes[:]
    shape = graph.add("Shape", "pixels")
    graph.add("ConstantOfShape", graph.add("Mul", shape, graph.ints(1, 1 << 20, 1, 1)))
    assert "elements per image" in refuse(graph.file(graph.add("Relu", "pixels")))
    graph = Graph(("n", 1, 8, 8))
    many = graph.conv("pixels", 1)
    graph.nodes[-1].attribute[2].ints[:] = [1 << 20] * 4
    assert "im2col matrix" in refuse(graph.file(many))


def test_walk_bounds_its_messages() -> None:
    """Names in messages are cut."""

    def rename(model: Any) -> None:
        model.graph.node[0].name = model.graph.node[0].op_type = "a" * 1000

    assert len(refuse(edited(small(), rename))) < 300
    assert walk.MAX_SHOWN == 60


def test_walk_returns_what_the_network_needs() -> None:
    """The sum of all nodes."""
    found = check_onnx(small())
    assert found.operators == {
        "Conv": 2,
        "BatchNormalization": 2,
        "Relu": 2,
        "Add": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
