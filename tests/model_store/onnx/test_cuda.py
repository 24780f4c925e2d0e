"""CUDA: loading libraries from wheels, with a fake linker."""

from __future__ import annotations

import ctypes
import pathlib
import sys

import pytest

from model_store.onnx.cuda import LIBRARIES, Cuda
from tests.model_store.linker import Linker

NAMES = [pathlib.Path(path.format(13, 13)).name for path, _ in LIBRARIES]


@pytest.fixture
def linker(monkeypatch: pytest.MonkeyPatch) -> Linker:
    linker = Linker("cannot open shared object file")
    monkeypatch.setattr(ctypes, "CDLL", linker)
    return linker


@pytest.fixture
def wheels(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """`site-packages` with every library, spread over two folders of the path."""
    for number, (library, _) in enumerate(LIBRARIES):
        path = tmp_path / f"site{number % 2}" / "nvidia" / library.format(13, 13)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site0"), str(tmp_path / "site1")])
    return tmp_path


def test_preload_loads_all_libraries_in_order(wheels: pathlib.Path, linker: Linker) -> None:
    """Every library is loaded by its path, after the libraries that it needs."""
    assert Cuda().preload("13") is None
    assert [path.name for path in linker.loaded] == NAMES
    assert all(path.is_relative_to(wheels) for path in linker.loaded)
    assert NAMES.index("libcublasLt.so.13") < NAMES.index("libcublas.so.13")


def test_preload_searches_where_the_linker_searches(
    linker: Linker, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """If NVIDIA's packages are not installed, the libraries may be those of the system."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert Cuda().preload("13") is None
    assert [str(path) for path in linker.loaded] == NAMES


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libcublasLt.so.13", "nvidia-cublas"),
        ("libcudnn.so.9", "nvidia-cudnn-cu13"),
        ("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    ],
)
def test_preload_names_the_missing_package(
    wheels: pathlib.Path, linker: Linker, library: str, package: str
) -> None:
    """In one line, with the extra that contains the package."""
    linker.broken = library
    reason = Cuda().preload("13") or ""
    assert library in reason and reason.endswith(
        f"'shoal[onnx-gpu]', which contains the package {package}"
    )
    assert "\n" not in reason


def test_machine_code_is_unknown_without_the_gpu_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The CPU build has no library for CUDA. Without a package there is none, either."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert Cuda().machine_code() is None
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    assert Cuda().machine_code() is None
