"""GpuSession: opens a session of ONNX Runtime on an NVIDIA GPU, for batches of one size.

A session uses a CUDA graph if possible. If ONNX Runtime would run an operator on the CPU, the
session uses no CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from model_store.manifest import BadModel
from model_store.onnx.device import CUDA
from model_store.onnx.session import brief, is_out_of_memory

log = logging.getLogger(__name__)

OPTIONS: Mapping[str, str] = {
    # TF32 has 10 bits of precision. The results in fp32 would differ from the results of a CPU by
    # more than 1e-4.
    "use_tf32": "0",
    # By default, ONNX Runtime tries all algorithms of cuDNN for each convolution and bucket.
    "cudnn_conv_algo_search": "HEURISTIC",
    # By default, ONNX Runtime doubles the memory whenever it needs more.
    "arena_extend_strategy": "kSameAsRequested",
}
"""Options of ONNX Runtime's library for CUDA. The memory is not limited: if the GPU has no more
memory, a batch raises MemoryError."""


OPEN = "n"
"""Name of the open batch size in the files that `writer` creates. ONNX Runtime also runs files that
use another name, but optimizes those files less."""


@dataclass
class Opener:
    """Opens sessions of one network on one GPU."""

    ort: Any
    """The module `onnxruntime`."""
    number: int
    """Number of the GPU, counted from 0."""
    content: bytes
    """Content of the ONNX file."""
    called: str
    """Path of the file, for error messages."""
    graphs: bool = True
    """Whether sessions use CUDA graphs. Becomes False if a session cannot use a CUDA graph."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options in addition to `OPTIONS`."""

    def open(self, bucket: int) -> Any:
        """Return a session for batches of `bucket` images.

        Raises:
            BadModel: ONNX Runtime cannot run the network.
            MemoryError: The GPU is out of memory.
        """
        with memory_errors(bucket):
            try:
                return self._open(bucket)
            except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors share no other base
                self.give_up_graphs(error)
            try:
                return self._open(bucket)
            except Exception as error:
                if is_out_of_memory(str(error)):
                    raise
                raise BadModel(f"{self.called} cannot be run by ONNX Runtime: {error}") from error

    def give_up_graphs(self, error: Exception) -> None:
        """Open later sessions without CUDA graphs. Must be called while `error` is handled.

        Raises `error` if it says that memory ran out, because CUDA graphs are not the cause.
        """
        if is_out_of_memory(str(error)):
            raise error
        if self.graphs:
            self.graphs = False
            log.warning(
                "%s runs without CUDA graphs, which is slower: %s", self.called, brief(error)
            )

    def _open(self, bucket: int) -> Any:
        settings = self.ort.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.add_free_dimension_override_by_name(OPEN, bucket)
        options = {
            "device_id": str(self.number),
            "enable_cuda_graph": str(int(self.graphs)),
            **OPTIONS,
            **self.options,
        }
        # Without `enable_fallback=0`, ONNX Runtime would print an error and use the CPU.
        session = self.ort.InferenceSession(
            self.content, settings, [(CUDA, options)], enable_fallback=0
        )
        if CUDA not in session.get_providers():
            raise RuntimeError("ONNX Runtime cannot load its library for CUDA")
        return session


@contextmanager
def memory_errors(bucket: int) -> Iterator[None]:
    """Raise MemoryError instead of another error if memory ran out for `bucket` images."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(str(error)):
            raise
        message = f"not enough memory for a batch of {bucket} images: {brief(error)}"
        raise MemoryError(message) from error
