"""CUDA: loading libraries from wheels, with a fake linker."""

from __future__ import annotations

import ctypes
import pathlib
import sys

import pytest

from model_store.mxnet import cuda
from tests.model_store.linker import Linker

# What `readelf -d` of the wheels says each needs.
NEEDS = {
    "libcublas.so.11": ["libcublasLt.so.11"],
    "libcusolver.so.11": ["libcublas.so.11", "libcublasLt.so.11"],
    "libcudnn_cnn_infer.so.8": ["libcudnn_ops_infer.so.8"],
    "libcudnn_adv_infer.so.8": ["libcudnn_ops_infer.so.8"],
    "libcudnn_ops_train.so.8": ["libcudnn_ops_infer.so.8"],
    "libcudnn_cnn_train.so.8": ["libcudnn_ops_train.so.8", "libcudnn_cnn_infer.so.8"],
    "libcudnn_adv_train.so.8": ["libcudnn_ops_train.so.8", "libcudnn_adv_infer.so.8"],
}


@pytest.fixture
def wheels(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """`site-packages/nvidia` with every library, spread over two folders of the path."""
    for number, library in enumerate(cuda.LIBRARIES):
        path = tmp_path / f"site{number % 2}" / "nvidia" / library
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site0"), str(tmp_path / "site1")])
    return tmp_path


@pytest.fixture
def linker(monkeypatch: pytest.MonkeyPatch) -> Linker:
    linker = Linker("file too short")
    monkeypatch.setattr(ctypes, "CDLL", linker)
    return linker


def test_preload_loads_all_libraries_in_order(wheels: pathlib.Path, linker: Linker) -> None:
    """Every library is loaded by its path, after its dependencies."""
    assert cuda.preload() == []
    names = [path.name for path in linker.loaded]
    assert len(names) == len(set(names)) == len(cuda.LIBRARIES)
    for name, needed in NEEDS.items():
        assert all(names.index(other) < names.index(name) for other in needed), name
    assert all(path.is_file() and path.is_relative_to(wheels) for path in linker.loaded)


def test_preload_skips_missing_libraries(wheels: pathlib.Path, linker: Linker) -> None:
    """They may be installed where the linker searches."""
    for path in wheels.glob("*/nvidia/cublas/lib/*"):
        path.unlink()
    assert cuda.preload() == []
    assert len(linker.loaded) == len(cuda.LIBRARIES) - 2


def test_preload_without_wheels_does_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, linker: Linker
) -> None:
    """Missing wheels are not an error."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda.preload() == []
    assert linker.loaded == []


def test_preload_reports_broken_libraries(wheels: pathlib.Path, linker: Linker) -> None:
    """A library that fails to load is reported, and the others are loaded."""
    linker.broken = "libcufft.so.10"
    (failure,) = cuda.preload()
    assert failure.startswith("libcufft.so.10: ") and failure.endswith(": file too short")
    assert len(linker.loaded) == len(cuda.LIBRARIES) - 1


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("libcudart.so.11.0: cannot open shared object file", "nvidia-cuda-runtime-cu11"),
        ("libcublas.so.11: cannot open shared object file", "nvidia-cublas-cu11"),
        ("libcudnn_ops_infer.so.8: undefined symbol", "nvidia-cudnn-cu11"),
        ("libnvToolsExt.so.1: cannot open shared object file", "nvidia-nvtx-cu11"),
        ("libcuda.so.1: cannot open shared object file", None),  # the driver's
        ("libgomp.so.1: cannot open shared object file", None),
    ],
)
def test_package_of_names_the_wheel(message: str, package: str | None) -> None:
    """For the name of a library in the linker's message."""
    assert cuda.package_of(message) == package
