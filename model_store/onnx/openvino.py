"""OpenVINO: an accelerator that runs the int8 networks of ONNX Runtime's backend on x86-64 CPUs.

OpenVINO is faster than ONNX Runtime in int8, but not in fp32
(docs/decisions/0041-onnx-runtime.md). The backend uses OpenVINO if OpenVINO is installed. Both
libraries read the same ONNX files.

OpenVINO compiles a network for one batch size. A network that accepts every batch size would run up
to 40 % slower. Therefore, there is one compiled network for each bucket (batch size), which all
lanes share. Each lane has its own inference requests, because only one thread at a time may use a
request.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from model_store.batch import Inputs, Rows
from model_store.manifest import BadModel, PrecisionName
from model_store.onnx.session import is_out_of_memory


def is_useful(precision: PrecisionName, device: str) -> bool:
    """Whether OpenVINO is installed and faster than ONNX Runtime. OpenVINO is not imported."""
    return (precision, device, platform.machine()) == (
        "int8",
        "cpu",
        "x86_64",
    ) and importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork:
    """A version's network for one lane, which runs batches after `load` and before `close`."""

    def __init__(self, compiled: dict[int, Any]) -> None:
        """
        Args:
            compiled: Bucket -> network that OpenVINO has compiled for that batch size.
        """
        self._compiled = compiled
        self._requests: dict[int, Any] = {}

    def load(self, beside: bool = True) -> Generator[None, None, None]:
        """Create this lane's inference requests, in steps. `beside` is ignored."""
        for bucket, compiled in self._compiled.items():
            self._requests[bucket] = compiled.create_infer_request()
            yield

    def compute(self, inputs: Inputs) -> Rows:
        """Compute the logits of a batch, float32 (bucket, classes).

        Raises:
            MemoryError: There is not enough memory.
            RuntimeError: OpenVINO failed.
        """
        request = self._requests[len(inputs)]
        try:
            request.get_input_tensor().data[:] = inputs
            request.infer(share_outputs=True)
        except RuntimeError as error:
            if is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        return np.array(request.get_output_tensor().data)

    def close(self) -> None:
        """Free the memory of the requests, and of the network if no other lane uses it."""
        self._requests.clear()
        self._compiled = {}


def networks(
    content: bytes, called: str, buckets: Sequence[int], threads: int, count: int
) -> list[OpenVinoNetwork]:
    """Return one network for each lane. The networks share their compiled graphs.

    Args:
        content: Content of the ONNX file.
        called: Path of the file, for error messages.
        buckets: Batch sizes that the networks must be able to run.
        threads: Number of CPU threads that run one batch.
        count: Number of networks.

    Raises:
        BadModel: OpenVINO cannot run the network.
        MemoryError: There is not enough memory.
    """
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    options = {
        "NUM_STREAMS": count,
        "INFERENCE_NUM_THREADS": count * threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise, parts that are not int8 run in bf16
        "ENABLE_CPU_PINNING": False,  # with pinning, several processes use the same core
    }
    compiled = {}
    try:
        graph = core.read_model(content)
        for bucket in buckets:
            fixed = graph.clone()
            fixed.reshape([bucket, *list(fixed.input().partial_shape)[1:]])
            compiled[bucket] = core.compile_model(fixed, "CPU", options)
    except RuntimeError as error:
        if is_out_of_memory(str(error)):
            raise MemoryError(str(error)) from error
        raise BadModel(f"{called} cannot be run by OpenVINO: {error}") from error
    return [OpenVinoNetwork(compiled) for _ in range(count)]
