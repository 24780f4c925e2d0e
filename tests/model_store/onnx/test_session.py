"""Sessions of ONNX Runtime: what its error messages mean."""

from __future__ import annotations

import pytest

from model_store.onnx.session import brief, is_out_of_memory

# Messages of ONNX Runtime 1.31. The names of its source files are shortened.
ARENA = "Status Message: bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 4"
LIMITED = "Status Message: bfc_arena.cc:360 Available memory of 9 is smaller than requested bytes 4"
CUDA = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; "
    "file=a.cc ; line=70 ; expr=cudaMalloc(&p, size);"
)
ILLEGAL = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : CUDA failure 700: an illegal memory access was "
    "encountered ; GPU=0 ; hostname=h ; file=a.cc ; line=70 ; expr=cudaStreamSynchronize(stream);"
)
CUBLAS = "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h"
CUDNN = "CUDNN failure 4005: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ARENA, True),
        (LIMITED, True),
        (CUDA, True),
        (CUBLAS, True),
        (CUDNN, True),
        ("std::bad_alloc", True),
        (ILLEGAL, False),
        ("CUDA failure 719: unspecified launch failure ; GPU=0", False),
        ("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0", False),
    ],
)
def test_is_out_of_memory_knows_the_messages(message: str, expected: bool) -> None:
    """A smaller batch is tried only if memory ran out, and not if the GPU is lost."""
    assert is_out_of_memory(message) is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ILLEGAL, "CUDA failure 700: an illegal memory access was encountered"),
        (CUBLAS, "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
        (f"{ARENA}\n\nmore", ARENA),
        ("", "RuntimeError"),
    ],
)
def test_brief_is_one_line(message: str, expected: str) -> None:
    """What a library of CUDA reports, or else the first line."""
    assert brief(RuntimeError(message)) == expected
