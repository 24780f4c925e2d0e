"""CUDA: loads and inspects NVIDIA's software for the GPU build of ONNX Runtime.

NVIDIA's Python packages install their libraries in folders below `nvidia/` of site-packages, where
the dynamic linker does not search. The dynamic linker uses libraries that are already loaded, so
`preload` loads NVIDIA's libraries before ONNX Runtime loads its own library for GPUs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib

from model_store.nvidia import find_library
from model_store.onnx import fatbin
from model_store.onnx.driver import Driver

LIBRARIES = (
    # Path below `nvidia/`, and package, in loading order. {} is the major version of CUDA. ONNX
    # Runtime links to the first four libraries, and opens cuDNN itself. cuDNN opens NVRTC.
    ("cu{}/lib/libcudart.so.{}", "nvidia-cuda-runtime"),
    ("cu{}/lib/libcublasLt.so.{}", "nvidia-cublas"),
    ("cu{}/lib/libcublas.so.{}", "nvidia-cublas"),
    ("cu{}/lib/libcurand.so.10", "nvidia-curand"),
    ("cu{}/lib/libnvrtc.so.{}", "nvidia-cuda-nvrtc"),
    ("cudnn/lib/libcudnn.so.9", "nvidia-cudnn-cu{}"),
)
PROVIDER = "capi/libonnxruntime_providers_cuda.so"
"""ONNX Runtime's library for GPUs, in the folder of the package `onnxruntime`."""


class Cuda:
    """NVIDIA's driver and libraries, and ONNX Runtime's machine code for GPUs."""

    @functools.cached_property
    def driver(self) -> Driver:
        """The driver, which is loaded on first use. Raises DriverError."""
        return Driver()

    def preload(self, major: str) -> str | None:
        """Load NVIDIA's libraries.

        If a library is in no Python package, the dynamic linker searches for the library.

        Args:
            major: Major version of CUDA that ONNX Runtime was built with.

        Returns:
            An error message that names the library that cannot be loaded, and the package to
            install. None: all libraries are loaded.
        """
        for path, package in LIBRARIES:
            library = path.format(major, major)
            found = find_library(library) or pathlib.PurePath(library).name
            try:
                ctypes.CDLL(str(found), ctypes.RTLD_GLOBAL)
            except OSError as error:
                return (
                    f"a CUDA library cannot be loaded ({error}): install the extra "
                    f"'shoal[onnx-gpu]', which contains the package {package.format(major)}"
                )
        return None

    def machine_code(self) -> fatbin.MachineCode | None:
        """Return the GPUs for which ONNX Runtime contains machine code. None: unknown."""
        spec = importlib.util.find_spec("onnxruntime")
        if spec is None or spec.origin is None:
            return None
        try:
            return fatbin.read(pathlib.Path(spec.origin).parent / PROVIDER)
        except (OSError, fatbin.BadFatbin):
            return None
