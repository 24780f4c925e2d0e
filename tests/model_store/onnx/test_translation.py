"""Translation of MXNet's operators to ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_store.manifest import BadModel
from model_store.onnx.graph import Graph, Node
from model_store.onnx.translation import translate


def arrays(graph: Graph) -> dict[str, Any]:
    random = np.random.default_rng(3)
    return {name: random.uniform(0.5, 2, shape) for name, shape in graph.shapes.items()}


def test_batch_norm_after_convolution_is_merged() -> None:
    """The merged convolution has the product of both as weight, and a bias."""
    graph = Graph("x", 2)
    graph.batch_norm(graph.convolution("x", "conv", 3, kernel=1), "norm")
    given = arrays(graph)
    (conv,), parameters = translate(graph.nodes, given, "y")
    assert (conv.op, list(conv.inputs), conv.output) == (
        "Conv",
        ["x", "norm.weight", "norm.bias"],
        "y",
    )
    factor = given["norm.gamma"] / np.sqrt(given["norm.running_var"] + 1e-5)
    weight, bias = parameters["norm.weight"], parameters["norm.bias"]
    assert weight == pytest.approx(given["conv.weight"] * factor[:, None, None, None])
    assert bias == pytest.approx(given["norm.beta"] - given["norm.running_mean"] * factor)
    assert {weight.dtype, bias.dtype} == {np.dtype(np.float32)}
    assert set(parameters) == {"norm.weight", "norm.bias"}


def test_bias_of_a_convolution_is_merged() -> None:
    """A convolution with a bias keeps it: the normalization scales it."""
    graph = Graph("x", 2)
    graph.batch_norm(graph.convolution("x", "conv", 3, kernel=1), "norm")
    graph.nodes[0]["names"].append("conv.bias")
    given = arrays(graph) | {"conv.bias": np.array([1.0, 2, 3])}
    _, parameters = translate(graph.nodes, given, "y")
    factor = given["norm.gamma"] / np.sqrt(given["norm.running_var"] + 1e-5)
    bias = given["norm.beta"] + (given["conv.bias"] - given["norm.running_mean"]) * factor
    assert parameters["norm.bias"] == pytest.approx(bias)


def test_convolution_with_two_readers_is_not_merged() -> None:
    """The second reader needs the convolution without the normalization."""
    graph = Graph("x", 2)
    conv = graph.convolution("x", "conv", 2, kernel=1)
    graph.add(graph.batch_norm(conv, "norm"), conv, "sum")
    operators, _ = translate(graph.nodes, arrays(graph), "y")
    assert [each.op for each in operators] == ["Conv", "BatchNormalization", "Add"]


@pytest.mark.parametrize("scale", [True, False])
def test_gamma_without_scale_is_one(scale: bool) -> None:
    """MXNet ignores the values of `gamma` if `fix_gamma` is set."""
    graph = Graph("x", 2)
    graph.batch_norm("x", "norm", scale=scale)
    given = arrays(graph)
    (norm,), parameters = translate(graph.nodes, given, "y")
    assert norm.op == "BatchNormalization"
    assert parameters["norm.gamma"] == pytest.approx(given["norm.gamma"] if scale else [1, 1])


def test_unknown_operator() -> None:
    """An operator that cannot be translated is an error that names it."""
    node: Node = {"op": "Dropout", "name": "drop", "names": ["x"], "attrs": {"p": "0.5"}}
    with pytest.raises(BadModel, match=r"drop: Dropout .* cannot be translated"):
        translate([node], {}, "y")
