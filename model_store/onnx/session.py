"""Session: computes the logits of a version with ONNX Runtime.

One session serves all lanes: several threads may run the session at the same time, with any batch
size.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from model_store.batch import Inputs, Rows
from model_store.manifest import BadModel

INPUT, OUTPUT = "pixels", "logits"
# Messages of C++, of ONNX Runtime's arena without and with a limit, of CUDA, and of cuBLAS and
# cuDNN.
OUT_OF_MEMORY = re.compile(
    r"bad_alloc|failed to allocate memory|available memory of \d+ is smaller|out of memory"
    r"|_ALLOC_FAILED|_ALLOCATION_FAILED",
    re.IGNORECASE,
)

FAILURE = re.compile(r"\w+ failure \d+: [^;]*[^; ]")
"""Pattern of an error of CUDA's libraries, inside a message of ONNX Runtime."""


class SessionNetwork:
    """A version's network for one lane, which can run batches before `close`."""

    def __init__(self, session: Any) -> None:
        """
        Args:
            session: ONNX Runtime's session, which the networks of other lanes may share.
        """
        self._session = session

    def load(self, beside: bool = True) -> Generator[None, None, None]:
        """Do nothing, because the session is already loaded."""
        yield from ()

    def compute(self, inputs: Inputs) -> Rows:
        """Compute the logits of a batch, float32 (bucket, classes).

        Raises:
            MemoryError: The device is out of memory.
            Exception: ONNX Runtime failed.
        """
        try:
            logits: Rows = self._session.run([OUTPUT], {INPUT: inputs})[0]
        except Exception as error:
            if is_out_of_memory(str(error)):
                raise MemoryError(str(error)) from error
            raise
        return logits

    def close(self) -> None:
        """Free the memory of the network, if no other lane uses the session."""
        self._session = None


def open_session(ort: Any, content: bytes, threads: int, called: str) -> Any:
    """Return a session that runs a network on the CPU.

    Args:
        ort: The module `onnxruntime`.
        content: Content of the ONNX file.
        threads: Number of CPU threads that run one batch.
        called: Name of the file, for error messages.

    Raises:
        BadModel: ONNX Runtime cannot run the network.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads sleep. If they used a core to wait, the event loop would be slowed down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no other base
        if is_out_of_memory(str(error)):
            raise MemoryError(str(error)) from error
        raise BadModel(f"{called} cannot be run by ONNX Runtime: {error}") from error
    session.disable_fallback()
    return session


def is_out_of_memory(message: str) -> bool:
    """Whether an error message says that memory ran out. If so, a smaller batch may succeed.

    CUDA's "illegal memory access" is a different error. After that error, the GPU computes nothing
    more for this process.
    """
    return OUT_OF_MEMORY.search(message) is not None


def brief(error: Exception) -> str:
    """Return the essential part of ONNX Runtime's error message, in one line."""
    found = FAILURE.search(str(error))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return found[0] if found else lines[0]
