"""Runtime: imports MXNet. Every `import mxnet` of the project goes through `load_mxnet`.

MXNet 1.9.1 is the last release of a retired project. Before its import, `load_mxnet` sets
environment variables that MXNet and OpenMP read only once, adds the alias `np.bool` that MXNet
uses, and loads CUDA's libraries for the GPU build. If the import fails with a linker error, it says
what to install.

Call it only on a thread that will own a network.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import os
import sys
import warnings
from typing import Any

import numpy as np

from model_store import amx, cuda

ENVIRONMENT = {
    # Tuning at import takes seconds and has hung under load (apache/mxnet issue 12255).
    "MXNET_USE_OPERATOR_TUNING": "0",
    # cu112 wheels are built for cuDNN 8.1; the check only warns that 8.9 is newer.
    "MXNET_CUDNN_LIB_CHECKING": "0",
    # Idle OpenMP threads sleep. Spinning threads would compete with the event loop for its core.
    "OMP_WAIT_POLICY": "PASSIVE",
}

KEEP_LOCK = (
    "MXNDArraySyncCopyFromCPU",
    "MXNDArraySyncCopyToCPU",
    "MXNDArrayGetShapeEx",
    "MXNDArrayGetDType",
    "MXNDArrayGetStorageType",
    "MXNDArrayFree",
)
"""Functions of MXNet that its Python package calls for each batch, apart from computing it."""


class MXNetUnavailable(RuntimeError):
    """MXNet cannot be imported. The message says what is missing and what to install."""


@functools.cache
def is_gpu_build() -> bool:
    """Whether the installed package of MXNet is one for CUDA. Does not import it."""
    names = (package.metadata["Name"] or "" for package in importlib.metadata.distributions())
    return any(name.lower().startswith("mxnet-cu") for name in names)


def is_for_cpu(device: str) -> bool:
    """Whether `device`, as in `device.choose`, can only be the CPU."""
    return device == "cpu" or not is_gpu_build()


def load_mxnet(threads: int, in_order: bool = False, with_amx: bool = False) -> Any:
    """Import MXNet and return the module.

    Later calls return the same module and ignore their arguments: a process can set them only once.

    Args:
        threads: OpenMP threads that compute one operator. Overrides OMP_NUM_THREADS; environment
            variables that are set take precedence over everything else that is set here.
        in_order: Run every operator on the calling thread when it is called. MXNet's default
            scheduler computes for all callers on one thread. In training it also reads BatchNorm's
            statistics while they are updated, so results of two runs differ.
        with_amx: Use AMX if the CPU has it; see `amx`.

    Raises:
        MXNetUnavailable.
    """
    if "mxnet" in sys.modules:
        return sys.modules["mxnet"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if in_order:
        os.environ.setdefault("MXNET_ENGINE_TYPE", "NaiveEngine")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    amx.configure(with_amx, os.environ)
    failures = cuda.preload() if is_gpu_build() else []
    if "bool" not in vars(np):
        np.bool = np.bool_  # type: ignore[attr-defined, unused-ignore]  # gone since NumPy 1.24
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DeprecationWarnings of a retired project
            mx = importlib.import_module("mxnet")
    except ModuleNotFoundError as error:
        raise MXNetUnavailable(_missing_package(error)) from error
    except OSError as error:
        raise MXNetUnavailable("; ".join([_missing_library(str(error)), *failures])) from error
    _start_scheduler(mx)
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine":
        _keep_interpreter_lock(mx)
    return mx


def _keep_interpreter_lock(mx: Any) -> None:
    """Make calls that take microseconds keep the interpreter lock.

    A thread that releases it while the event loop is busy gets it back up to 5 ms later. Not for
    MXNet's default scheduler: there, copying waits for the computation.
    """
    library = ctypes.PyDLL(mx.libinfo.find_lib_path()[0])
    for name in KEEP_LOCK:
        setattr(mx.base._LIB, name, getattr(library, name))


def _start_scheduler(mx: Any) -> None:
    """Start the scheduler without its message on standard error.

    Every scheduler but the default one prints its name. Starting takes microseconds, so no other
    output is lost, except that of a crash.
    """
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        mx.nd.waitall()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _missing_package(error: ModuleNotFoundError) -> str:
    if error.name == "distutils":
        return "MXNet needs distutils, which Python 3.12 dropped: pip install 'setuptools>=70'"
    return (
        f"MXNet cannot be imported ({error}): install the extra for this machine, "
        "'shoal[cpu]' or, with an NVIDIA GPU, 'shoal[gpu]'"
    )


def _missing_library(message: str) -> str:
    if "libcuda.so" in message:
        return (
            "this is the GPU build of MXNet and NVIDIA's driver (libcuda.so.1) is missing: "
            "install the driver, or replace mxnet-cu112 by the extra 'shoal[cpu]'"
        )
    if package := cuda.package_of(message):
        return (
            f"this is the GPU build of MXNet and a CUDA 11 library cannot be loaded ({message}): "
            f"install the extra 'shoal[gpu]', which brings it as {package}"
        )
    if "libgomp" in message or "libquadmath" in message:
        return f"MXNet needs a system library ({message}): apt-get install libgomp1 libquadmath0"
    return f"MXNet cannot be loaded: {message}"
