"""Runtime: imports ONNX Runtime. All code that serves with ONNX Runtime calls `load_onnxruntime`.

The packages `onnxruntime` (for CPUs) and `onnxruntime-gpu` install the same module, so only one of
the packages can be installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from typing import Any

from model_store.backend import BackendUnavailable

INSTALL = "install the extra 'shoal[onnx]' or, with an NVIDIA GPU, 'shoal[onnx-gpu]'"
FATAL = 4
"""Lowest severity of log messages that ONNX Runtime prints. Errors are also raised as exceptions,
so printing them would report them twice."""


def is_installed() -> bool:
    """Whether ONNX Runtime is installed. ONNX Runtime is not imported."""
    return importlib.util.find_spec("onnxruntime") is not None


@functools.cache
def is_gpu_build() -> bool:
    """Whether the installed package is built for CUDA. The package is not imported."""
    try:
        importlib.metadata.distribution("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def load_onnxruntime() -> Any:
    """Import ONNX Runtime and return the module.

    Raises:
        BackendUnavailable: ONNX Runtime cannot be imported.
    """
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailable(f"ONNX Runtime cannot be imported ({error}): {INSTALL}") from error
    ort.set_default_logger_severity(FATAL)
    return ort
