"""Runs and describes `.onnx` files."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def coarse(count: int) -> Any:
    """Colored squares with a little noise, which differ as much as photographs do."""
    random = np.random.default_rng(5)
    squares = random.integers(0, 256, (count, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noise = random.integers(-20, 21, (count, 32, 32, 3))
    return np.clip(squares + noise, 0, 255).astype(np.uint8)


def logits(content: bytes, images: Any) -> Any:
    """Return the logits that ONNX Runtime computes."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"pixels": images})[0]


def check_interface(content: bytes) -> None:
    """Check the input, the output and the versions of a file of the network that ships.

    Each image of a batch must get the same logits as alone.
    """
    onnx = importlib.import_module("onnx")
    loaded = onnx.load_from_string(content)
    onnx.checker.check_model(loaded, full_check=True)
    assert [(each.domain, each.version) for each in loaded.opset_import] == [("", 13)]
    assert loaded.ir_version == 8
    assert not loaded.metadata_props
    assert {node.domain for node in loaded.graph.node} == {""}
    ports = (*loaded.graph.input, *loaded.graph.output)
    assert [port.name for port in ports] == ["pixels", "logits"]
    types = [port.type.tensor_type for port in ports]
    assert [each.elem_type for each in types] == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    shapes = [[each.dim_param or each.dim_value for each in port.shape.dim] for port in types]
    assert shapes == [["n", 32, 32, 3], ["n", 10]]

    images = coarse(5)
    alone = np.concatenate([logits(content, images[at : at + 1]) for at in range(5)])
    assert np.abs(logits(content, images) - alone).max() < 1e-4


def softmax(rows: Any) -> Any:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
