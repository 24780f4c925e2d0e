"""The test computation, with ONNX Runtime on the CPU."""

# ruff: noqa: N802  # the names are those of the library

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_store.onnx.trial import NETWORK, is_right

ort = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


class Runtime:
    """ONNX Runtime with a device whose results are `error` too large."""

    SessionOptions = ort.SessionOptions

    def __init__(self, error: float) -> None:
        self.error = error

    def InferenceSession(self, network: bytes, *_: Any, **options: Any) -> Any:
        session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
        return session if "providers" in options else Session(session, self.error)


class Session:
    def __init__(self, session: Any, error: float) -> None:
        self.session = session
        self.error = error

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
        return [result + self.error for result in self.session.run(outputs, inputs)]


def test_network_is_made_with_onnx() -> None:
    """The bytes in the source code are those that the package `onnx` makes."""
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    helper, numbers = onnx.helper, onnx.numpy_helper
    filters = np.arange(18, dtype=np.float32).reshape(2, 1, 3, 3) % 3 - 1
    matrix = np.arange(16, dtype=np.float32).reshape(8, 2) % 5 - 2
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "trial",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])],
        [numbers.from_array(filters, "w"), numbers.from_array(matrix, "m")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert model == onnx.load_model_from_string(NETWORK)


@pytest.mark.parametrize(("error", "right"), [(0.0, True), (1e-4, True), (0.1, False)])
def test_is_right_compares_with_the_cpu(error: float, right: bool) -> None:
    """A device is right if its results are those of the CPU, except for rounding errors."""
    assert is_right(Runtime(error), "a device", 0) is right


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_is_right_does_not_compute_on_the_cpu_instead() -> None:
    """If ONNX Runtime cannot use the device, an error is raised."""
    with pytest.raises(Exception, match="CPU EP"):
        is_right(ort, "CUDAExecutionProvider", 0)
