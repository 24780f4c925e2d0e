"""The one door to MXNet: every `import mxnet` of the project goes through `load_mxnet`.

MXNet 1.9.1 is the last release of a retired project, so four things must be right before its
import, and this is where they are: environment variables it and OpenMP read only once, the
`np.bool` alias it still uses, CUDA's libraries for its GPU build, and a message in words where
its import dies in a linker error.

Call it from a thread that will own a network, and from no other.
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

from model_store import cuda, tiles

ENVIRONMENT = {
    # Tuning at import takes seconds and has hung under load (apache/mxnet issue 12255).
    "MXNET_USE_OPERATOR_TUNING": "0",
    # cu112 wheels are built for cuDNN 8.1; the check only warns that 8.9 is newer.
    "MXNET_CUDNN_LIB_CHECKING": "0",
    # Idle OpenMP threads sleep. Spinning ones fight the event loop for its core.
    "OMP_WAIT_POLICY": "PASSIVE",
}

BRIEF = (
    "MXNDArraySyncCopyFromCPU",
    "MXNDArraySyncCopyToCPU",
    "MXNDArrayGetShapeEx",
    "MXNDArrayGetDType",
    "MXNDArrayGetStorageType",
    "MXNDArrayFree",
)
"""What MXNet's Python calls for each batch beside computing it."""


class MXNetUnavailable(RuntimeError):
    """MXNet cannot be imported here; the message says what is missing and what to install."""


@functools.cache
def is_gpu_build() -> bool:
    """Is the MXNet that is installed one of those for CUDA? Asks the package, not MXNet."""
    names = (package.metadata["Name"] or "" for package in importlib.metadata.distributions())
    return any(name.lower().startswith("mxnet-cu") for name in names)


def is_for_cpu(device: str) -> bool:
    """Does `device`, in the words of `device.choose`, leave no choice but the CPU?"""
    return device == "cpu" or not is_gpu_build()


def load_mxnet(threads: int, in_order: bool = False, with_tiles: bool = False) -> Any:
    """Import MXNet with `threads` OpenMP threads per operator and return the module.

    `in_order`: every operator runs when it is called, on the caller's thread. MXNet's own
    scheduler has one thread compute for all who call; and in training it reads BatchNorm's
    statistics while they are being updated, so that two runs differ. `with_tiles`: see `tiles`.

    `threads` wins over an inherited OMP_NUM_THREADS, which was meant for programs of every kind.
    All else that is set here gives way to what the environment says. The second call returns the
    module of the first, whatever its arguments say: they are read once in the life of a process.

    Raises MXNetUnavailable.
    """
    if "mxnet" in sys.modules:
        return sys.modules["mxnet"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if in_order:
        os.environ.setdefault("MXNET_ENGINE_TYPE", "NaiveEngine")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    tiles.settle(with_tiles, os.environ)
    failures = cuda.preload() if is_gpu_build() else []
    if "bool" not in vars(np):
        np.bool = np.bool_  # type: ignore[attr-defined, unused-ignore]  # gone since NumPy 1.24
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DeprecationWarnings of a module nobody maintains
            mx = importlib.import_module("mxnet")
    except ModuleNotFoundError as error:
        raise MXNetUnavailable(_what_to_install(error)) from error
    except OSError as error:
        raise MXNetUnavailable("; ".join([_what_is_missing(str(error)), *failures])) from error
    _start_scheduler(mx)
    if os.environ.get("MXNET_ENGINE_TYPE") == "NaiveEngine":
        _keep_the_lock(mx)
    return mx


def _keep_the_lock(mx: Any) -> None:
    """Calls that are over in microseconds keep the interpreter lock: a thread that gives it away
    while the event loop is at work gets it back up to 5 ms later. Not with a scheduler of threads,
    where copying waits for what is being computed."""
    kept = ctypes.PyDLL(mx.libinfo.find_lib_path()[0])
    for name in BRIEF:
        setattr(mx.base._LIB, name, getattr(kept, name))


def _start_scheduler(mx: Any) -> None:
    """Any scheduler but the default one says its name on standard error as it starts, which takes
    microseconds; nobody else's words can be lost in them but a crash's."""
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        mx.nd.waitall()
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _what_to_install(error: ModuleNotFoundError) -> str:
    if error.name == "distutils":
        return "MXNet needs distutils, which Python 3.12 dropped: pip install 'setuptools>=70'"
    return (
        f"MXNet cannot be imported ({error}): install the extra for this machine, "
        "'shoal[cpu]' or, with an NVIDIA GPU, 'shoal[gpu]'"
    )


def _what_is_missing(message: str) -> str:
    if "libcuda.so" in message:
        return (
            "this is the GPU build of MXNet and NVIDIA's driver (libcuda.so.1) is not here: "
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
