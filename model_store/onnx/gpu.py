"""GPU: computes the logits of a version on an NVIDIA GPU, with ONNX Runtime.

Starting each operator separately would take longer than running the operators. Therefore, the
operators of a batch are recorded as a CUDA graph, which is started with a single call. A CUDA graph
has fixed shapes and addresses. Therefore, there is one session for each bucket (batch size), with
buffers on the GPU. Pixels are copied to the GPU as uint8, and the network normalizes the pixels.

Each session has its own copy of the weights. A single session could also record one graph for each
bucket. But when an operator prepares for another shape, the operator may free memory that an
earlier graph uses.

ONNX Runtime records a graph for the thread that runs the session. Other threads must not allocate
memory on the GPU during the recording. Therefore, all batches run on the lane's thread.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from model_store.batch import Inputs, Rows
from model_store.onnx.gpu_session import Opener, memory_errors
from model_store.onnx.session import INPUT, OUTPUT


class Bound:
    """A session that runs batches of one size, with its input and output on the GPU."""

    def __init__(self, opener: Opener, bucket: int, session: Any) -> None:
        """
        Args:
            opener: Opener of the session.
            bucket: Batch size of the session.
            session: Session for that batch size.
        """
        shape = [bucket, *session.get_inputs()[0].shape[1:]]
        classes = session.get_outputs()[0].shape[1]
        make, number = opener.ort.OrtValue.ortvalue_from_shape_and_type, opener.number
        self._session = session
        self._inputs = make(shape, np.uint8, "cuda", number)
        self._logits = make([bucket, classes], np.float32, "cuda", number)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._inputs)
        self._binding.bind_ortvalue_output(OUTPUT, self._logits)
        # The first run allocates the memory and records the CUDA graph.
        self(np.zeros(shape, np.uint8))

    def __call__(self, inputs: Inputs) -> Rows:
        self._inputs.update_inplace(inputs)
        self._session.run_with_iobinding(self._binding)
        return np.array(self._logits.numpy())


class GpuNetwork:
    """A version's network, which runs batches after `load` and before `close`."""

    def __init__(self, opener: Opener, sessions: dict[int, Any]) -> None:
        """
        Args:
            opener: Opener of the sessions.
            sessions: Bucket (batch size) -> session for that batch size.
        """
        self._opener = opener
        self._sessions = sessions
        self._bound: dict[int, Bound] = {}

    def load(self, beside: bool = True) -> Generator[None, None, None]:
        """Allocate the memory and record the CUDA graphs, in steps. `beside` is ignored.

        Raises:
            BadModel: ONNX Runtime cannot run the network.
            MemoryError: The GPU is out of memory.
            Exception: ONNX Runtime failed.
        """
        for bucket in list(self._sessions):
            self._bound[bucket] = self._bind(bucket)
            yield

    def compute(self, inputs: Inputs) -> Rows:
        """Compute the logits of a batch, float32 (bucket, classes).

        Raises:
            MemoryError: The GPU is out of memory.
            Exception: ONNX Runtime failed. If the GPU was lost, all later batches fail as well.
        """
        with memory_errors(len(inputs)):
            return self._bound[len(inputs)](inputs)

    def close(self) -> None:
        """Free the memory of the network."""
        self._bound.clear()
        self._sessions.clear()

    def _bind(self, bucket: int) -> Bound:
        with memory_errors(bucket):
            try:
                return Bound(self._opener, bucket, self._sessions.pop(bucket))
            except Exception as error:  # noqa: BLE001
                self._opener.give_up_graphs(error)
            return Bound(self._opener, bucket, self._opener.open(bucket))


def network(opener: Opener, buckets: Sequence[int]) -> GpuNetwork:
    """Open the sessions of a network. This function may be called on any thread.

    Args:
        opener: Opens the sessions.
        buckets: Batch sizes that the network must be able to run.

    Raises:
        BadModel: ONNX Runtime cannot run the network.
        MemoryError: The GPU is out of memory.
    """
    return GpuNetwork(opener, {bucket: opener.open(bucket) for bucket in buckets})
