"""NVIDIA's CUDA 11 libraries, as the wheels `nvidia-*-cu11` bring them, for MXNet's GPU build.

The wheels put them into `nvidia/<part>/lib` of site-packages, where no linker looks. A library
that is loaded already serves whoever asks for its name, so all are loaded before MXNet is.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib

LIBRARIES = (
    # What libmxnet.so of mxnet-cu112 links to and what those need, dependencies first.
    "cuda_runtime/lib/libcudart.so.11.0",
    "nvtx/lib/libnvToolsExt.so.1",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "cusparse/lib/libcusparse.so.11",
    "cusolver/lib/libcusolver.so.11",
    # cuDNN opens its parts when it first needs them: a part that is broken is found at start.
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_adv_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
    "cudnn/lib/libcudnn_adv_train.so.8",
    "cudnn/lib/libcudnn.so.8",
    "nccl/lib/libnccl.so.2",
)


def preload() -> list[str]:
    """Load every library that the wheels brought; what could not be loaded, and why.

    One that is not there is passed over: the system may have it where the linker looks.
    """
    failures = []
    for library in LIBRARIES:
        path = _find(library)
        if path is None:
            continue
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(f"{path.name}: {error}")
    return failures


def package_of(message: str) -> str | None:
    """The package that brings the library that a linker's message names, if it is one of these."""
    for library in LIBRARIES:
        part, _, name = library.split("/")
        if name in message:
            return f"nvidia-{part.replace('_', '-')}-cu11"
    return None


def _find(library: str) -> pathlib.Path | None:
    spec = importlib.util.find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = (pathlib.Path(folder, library) for folder in folders)
    return next((path for path in paths if path.is_file()), None)
