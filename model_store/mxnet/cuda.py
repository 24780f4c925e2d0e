"""CUDA: loads NVIDIA's CUDA 11 libraries, which the GPU build of MXNet needs.

The libraries are in the Python packages `nvidia-*-cu11`. These packages install the libraries in
the folders `nvidia/<part>/lib` of site-packages, where the dynamic linker does not search. The
dynamic linker uses libraries that are already loaded, so this module loads all of them before MXNet
is imported.
"""

from __future__ import annotations

import ctypes

from model_store.nvidia import find_library

LIBRARIES = (
    # Libraries that libmxnet.so of mxnet-cu112 links to, and their dependencies, in loading order.
    "cuda_runtime/lib/libcudart.so.11.0",
    "nvtx/lib/libnvToolsExt.so.1",
    "cuda_nvrtc/lib/libnvrtc.so.11.2",
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cufft/lib/libcufft.so.10",
    "curand/lib/libcurand.so.10",
    "cusparse/lib/libcusparse.so.11",
    "cusolver/lib/libcusolver.so.11",
    # cuDNN would load these parts on first use. Loading them here detects a damaged file at start.
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
    """Load all libraries in the packages. Returns the name and error of each failed library.

    A missing library is skipped, because it may be in a folder where the dynamic linker searches.
    """
    failures = []
    for library in LIBRARIES:
        path = find_library(library)
        if path is None:
            continue
        try:
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        except OSError as error:
            failures.append(f"{path.name}: {error}")
    return failures


def package_of(message: str) -> str | None:
    """Return the package that contains the library named in an error of the dynamic linker.

    Returns None if the error names no known library.
    """
    for library in LIBRARIES:
        part, _, name = library.split("/")
        if name in message:
            return f"nvidia-{part.replace('_', '-')}-cu11"
    return None
