"""Importing ONNX Runtime, and what is said if that fails."""

from __future__ import annotations

import importlib.metadata

import pytest

from model_store.backend import BackendUnavailable
from model_store.onnx import runtime


def test_load_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""

    def fails(name: str) -> None:
        raise ImportError("no module of this name")

    monkeypatch.setattr("importlib.import_module", fails)
    with pytest.raises(BackendUnavailable, match=r"no module of this name.*shoal\[onnx\]") as error:
        runtime.load_onnxruntime()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("installed", [True, False])
def test_is_gpu_build_looks_at_the_package(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    """Both packages install a module of the same name."""

    def distribution(name: str) -> object:
        if not installed or name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError
        return object()

    runtime.is_gpu_build.cache_clear()
    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    assert runtime.is_gpu_build() is installed
    runtime.is_gpu_build.cache_clear()
