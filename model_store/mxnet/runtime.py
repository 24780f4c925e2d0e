"""Runtime: imports MXNet. All code of the project that needs MXNet calls `load_mxnet`.

MXNet 1.9.1 is the last release of a retired project and needs preparation. Before the import,
`load_mxnet` sets environment variables that MXNet and OpenMP read only once, and adds the alias
`np.bool`, which MXNet uses and NumPy has removed. For the GPU build of MXNet, `load_mxnet` also
loads CUDA's libraries. If the import fails, the error message says what to install.

`load_mxnet` must be called only on a thread that will use a network.
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

from model_store.backend import BackendUnavailable
from model_store.mxnet import amx, cuda

ENVIRONMENT = {
    # MXNet's tuning at import takes seconds and has hung under load (apache/mxnet issue 12255).
    "MXNET_USE_OPERATOR_TUNING": "0",
    # The GPU build was made with cuDNN 8.1; the check would only warn that 8.9 is newer.
    "MXNET_CUDNN_LIB_CHECKING": "0",
    # Idle OpenMP threads sleep. If they used a core to wait, the event loop would be slowed down.
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
"""Names of the short C functions that MXNet's Python package calls for each batch. The tuple does
not contain the function that runs the network."""


@functools.cache
def is_gpu_build() -> bool:
    """Whether the installed package of MXNet is built for CUDA. MXNet is not imported."""
    names = (package.metadata["Name"] or "" for package in importlib.metadata.distributions())
    return any(name.lower().startswith("mxnet-cu") for name in names)


def is_for_cpu(device: str) -> bool:
    """Whether `device` can only mean the CPU. `device` is as in `device.choose`."""
    return device == "cpu" or not is_gpu_build()


def load_mxnet(threads: int, in_order: bool = False, with_amx: bool = False) -> Any:
    """Import MXNet and return the module.

    Later calls return the same module and ignore their arguments, because MXNet reads the settings
    only once per process. The setting `threads` overrides the environment variable
    OMP_NUM_THREADS. All other environment variables that are already set remain as they are.

    Args:
        threads: Number of OpenMP threads that run one operator.
        in_order: Whether every operator runs immediately, on the thread that calls it.
            MXNet's default scheduler runs the operators of all threads on one thread. In
            training, the default scheduler also reads BatchNorm's statistics while they are
            updated, so two equal runs have different results.
        with_amx: Whether to use AMX, Intel's matrix unit, if the CPU has it; see `amx`.

    Raises:
        BackendUnavailable: MXNet cannot be imported.
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
        np.bool = np.bool_  # type: ignore[attr-defined, unused-ignore]  # removed in NumPy 1.24
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MXNet's DeprecationWarnings will not be fixed
            mx = importlib.import_module("mxnet")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(_missing_package(error)) from error
    except OSError as error:
        raise BackendUnavailable("; ".join([_missing_library(str(error)), *failures])) from error
    _start_scheduler(mx)
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine":
        _keep_interpreter_lock(mx)
    return mx


def _keep_interpreter_lock(mx: Any) -> None:
    """Make the short calls in `KEEP_LOCK` keep the interpreter lock.

    A thread that releases the lock while the event loop is busy may get it back only 5 ms later.
    This function must not be called if MXNet uses its default scheduler. With that scheduler, a
    call that copies an array waits for the computation, and would keep the lock during that time.
    """
    library = ctypes.PyDLL(mx.libinfo.find_lib_path()[0])
    for name in KEEP_LOCK:
        setattr(mx.base._LIB, name, getattr(library, name))


def _start_scheduler(mx: Any) -> None:
    """Start MXNet's scheduler without the message that it prints to standard error.

    All schedulers except the default scheduler print their name. Standard error is redirected to
    /dev/null while the scheduler starts, which takes a few microseconds.
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
        return "MXNet needs distutils, which Python 3.12 removed: pip install 'setuptools>=70'"
    return (
        f"MXNet cannot be imported ({error}): install the extra for this machine, "
        "'shoal[cpu]' or, with an NVIDIA GPU, 'shoal[gpu]'"
    )


def _missing_library(message: str) -> str:
    if "libcuda.so" in message:
        return (
            "this is the GPU build of MXNet, and NVIDIA's driver (libcuda.so.1) is missing: "
            "install the driver, or replace mxnet-cu112 with the extra 'shoal[cpu]'"
        )
    if package := cuda.package_of(message):
        return (
            f"this is the GPU build of MXNet, and a CUDA 11 library cannot be loaded ({message}): "
            f"install the extra 'shoal[gpu]', which contains the package {package}"
        )
    if "libgomp" in message or "libquadmath" in message:
        return f"MXNet needs a system library ({message}): apt-get install libgomp1 libquadmath0"
    return f"MXNet cannot be loaded: {message}"
