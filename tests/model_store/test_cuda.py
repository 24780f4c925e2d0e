"""Loading CUDA's libraries out of their wheels, with a stand-in for the linker."""

from __future__ import annotations

import ctypes
import pathlib
import sys

import pytest

from model_store import cuda

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


class Linker:
    """Stands in for `ctypes.CDLL`: notes what is loaded, and refuses what is named `broken`."""

    def __init__(self) -> None:
        self.loaded: list[pathlib.Path] = []
        self.broken = ""

    def __call__(self, path: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        if pathlib.Path(path).name == self.broken:
            raise OSError(f"{path}: file too short")
        self.loaded.append(pathlib.Path(path))


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
    linker = Linker()
    monkeypatch.setattr(ctypes, "CDLL", linker)
    return linker


def test_all_are_loaded_in_order(wheels: pathlib.Path, linker: Linker) -> None:
    """Every library by its path, and none before what it needs."""
    assert cuda.preload() == []
    names = [path.name for path in linker.loaded]
    assert len(names) == len(set(names)) == len(cuda.LIBRARIES)
    for name, needed in NEEDS.items():
        assert all(names.index(other) < names.index(name) for other in needed), name
    assert all(path.is_file() and path.is_relative_to(wheels) for path in linker.loaded)


def test_what_is_not_there_is_passed_over(wheels: pathlib.Path, linker: Linker) -> None:
    """The system may have it where the linker looks."""
    for path in wheels.glob("*/nvidia/cublas/lib/*"):
        path.unlink()
    assert cuda.preload() == []
    assert len(linker.loaded) == len(cuda.LIBRARIES) - 2


def test_no_wheels(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, linker: Linker) -> None:
    """Neither is it an error where there are none at all."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cuda.preload() == []
    assert linker.loaded == []


def test_a_broken_one_is_told(wheels: pathlib.Path, linker: Linker) -> None:
    """One that does not load is told and does not keep the others from being loaded."""
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
def test_package(message: str, package: str | None) -> None:
    """What to install for what the linker misses."""
    assert cuda.package_of(message) == package
