"""Sessions of ONNX Runtime: messages about memory, errors, and use by several threads."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import numpy as np
import pytest

from model_store.manifest import BadModel
from model_store.onnx.session import SessionNetwork, brief, is_out_of_memory, open_session

MESSAGES = [
    ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", True),
    ("bfc_arena.cc:376 ... Failed to allocate memory for requested buffer of size 42", True),
    ("bfc_arena.cc:360 Available memory of 9 is smaller than requested bytes of 42", True),
    ("CUDA failure 2: out of memory ; GPU=0", True),
    ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
    ("CUDNN failure 4005: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0", True),
    ("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR", False),
    ("CUDA failure 719: unspecified launch failure ; GPU=0", False),
    ("CUDA failure 700: an illegal memory access was encountered", False),
    ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input", False),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_is_out_of_memory_knows_the_messages(message: str, expected: bool) -> None:
    """Messages for which a smaller batch may succeed, and others."""
    assert is_out_of_memory(message) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "FAIL : CUDA failure 700: an illegal access ; GPU=0",
            "CUDA failure 700: an illegal access",
        ),
        ("CUDA failure 2: out of memory ; GPU=0", "CUDA failure 2: out of memory"),
        ("Failed to allocate memory\n\nmore", "Failed to allocate memory"),
        ("", "RuntimeError"),
    ],
)
def test_brief_is_one_line(message: str, expected: str) -> None:
    """What a library of CUDA reports, or else the first line."""
    assert brief(RuntimeError(message)) == expected


class FakeSession:
    """Raises an error with a message."""

    def __init__(self, message: str) -> None:
        self.message = message

    def run(self, outputs: object, inputs: object) -> object:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(("message", "expected"), MESSAGES)
def test_compute_raises_memory_error_only_for_memory(message: str, expected: bool) -> None:
    """So that the batcher tries smaller batches only if that can help."""
    network = SessionNetwork(FakeSession(message))
    with pytest.raises(MemoryError if expected else RuntimeError):
        network.compute(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.fixture(scope="module")
def ort() -> Any:
    return pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


def test_open_session_rejects_what_is_no_network(ort: Any) -> None:
    """The message names the file."""
    with pytest.raises(BadModel, match=r"net\.onnx cannot be run by ONNX Runtime"):
        open_session(ort, b"not a network", 1, "net.onnx")


@pytest.mark.slow
def test_session_computes_for_several_threads(ort: Any, shipped: pathlib.Path) -> None:
    """Every thread gets the rows of its own images."""
    session = open_session(ort, (shipped / "net.onnx").read_bytes(), 1, "net.onnx")
    images = np.random.default_rng(1).integers(0, 256, (64, 32, 32, 3), np.uint8)
    expected = SessionNetwork(session).compute(images)
    wrong: list[int] = []

    def run(first: int) -> None:
        network = SessionNetwork(session)
        for start in range(first, 60, 4):
            rows = network.compute(images[start : start + 3])
            if np.abs(rows - expected[start : start + 3]).max() > 1e-4:
                wrong.append(start)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
