"""A GPU for tests: ONNX Runtime whose library for CUDA computes on the CPU."""

# ruff: noqa: N802  # the names are those of the library

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest

from model_store.onnx.device import CUDA

FALLBACK = RuntimeError(
    "This session cannot use the graph capture feature as requested by the user as all compute "
    "graph nodes have not been partitioned to the CUDAExecutionProvider"
)
FULL = RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 9")
LOST = RuntimeError("CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=h")

Hook = Callable[[int, bool], None]
"""Function that receives the batch size of a session, and whether it uses a CUDA graph."""


class FakeGpu:
    """Replaces the module `onnxruntime`."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self) -> None:
        self.OrtValue = self
        self.loads = True
        """Whether the library for CUDA can be loaded."""
        self.on_open: Hook = lambda bucket, graph: None
        """Called when a session is opened. It may raise."""
        self.on_run: Hook = lambda bucket, graph: None
        """Called when a session runs. It may raise."""
        self.opened: list[tuple[int, Mapping[str, str]]] = []
        """Batch size and options of each session that was opened."""
        self.buffers: list[tuple[Sequence[int], Any, str, int]] = []
        """Shape, element type, kind and number of the device of each buffer."""

    def InferenceSession(
        self, content: bytes, settings: Any, providers: Any, enable_fallback: int
    ) -> Any:
        ((provider, options),) = providers
        assert (provider, enable_fallback) == (CUDA, 0)
        session = onnxruntime.InferenceSession(
            content, settings, providers=["CPUExecutionProvider"]
        )
        bucket = session.get_inputs()[0].shape[0]
        self.on_open(bucket, options["enable_cuda_graph"] == "1")
        self.opened.append((bucket, options))
        return FakeSession(self, session, bucket, options["enable_cuda_graph"] == "1")

    def ortvalue_from_shape_and_type(
        self, shape: Sequence[int], dtype: Any, kind: str, number: int
    ) -> Any:
        self.buffers.append((list(shape), dtype, kind, number))
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)


class FakeSession:
    def __init__(self, gpu: FakeGpu, session: Any, bucket: int, graph: bool) -> None:
        self.gpu, self.session, self.bucket, self.graph = gpu, session, bucket, graph
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs
        self.io_binding = session.io_binding

    def get_providers(self) -> list[str]:
        return [CUDA] if self.gpu.loads else ["CPUExecutionProvider"]

    def run_with_iobinding(self, binding: Any) -> None:
        self.gpu.on_run(self.bucket, self.graph)
        self.session.run_with_iobinding(binding)


def network() -> bytes:
    """Return a network whose three logits are the mean red, green and blue of the image."""
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    types, helper = onnx.TensorProto, onnx.helper
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["logits"], axes=[1, 2], keepdims=0),
    ]
    pixels = helper.make_tensor_value_info("pixels", types.UINT8, ["n", 32, 32, 3])
    logits = helper.make_tensor_value_info("logits", types.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "means", [pixels], [logits])
    opset = [helper.make_opsetid("", 13)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    return content


def raises(error: Exception, *buckets: int, graph: bool | None = None) -> Hook:
    """Return a hook that raises for some batch sizes, and only with or without a CUDA graph."""

    def hook(bucket: int, uses_graph: bool) -> None:
        if bucket in buckets and graph in (None, uses_graph):
            raise error

    return hook


def images(count: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
