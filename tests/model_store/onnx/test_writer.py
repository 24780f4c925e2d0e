"""The `.onnx` files that are written compute the same as the NumPy reference."""

from __future__ import annotations

import pathlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model_store import manifest
from model_store.manifest import BadModel, Manifest
from model_store.onnx import writer
from model_store.params import BadParams, read_params
from tests import reference
from tests.model_store.onnx.running import check_interface, coarse, logits, softmax

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
PRECISIONS = ("fp32", "fp16")


@pytest.fixture(scope="module")
def model(shipped: pathlib.Path) -> Manifest:
    return manifest.read(shipped)


@pytest.fixture(scope="module")
def arrays(shipped: pathlib.Path, model: Manifest) -> Any:
    return read_params(shipped / model.parameters.file)


@pytest.fixture(scope="module")
def contents(model: Manifest, arrays: Any) -> dict[str, bytes]:
    """The files of the network that ships."""
    return {"fp32": writer.fp32(model, arrays), "fp16": writer.fp16(model, arrays)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_interface(contents: dict[str, bytes], precision: str) -> None:
    """Files have one uint8 input, one float32 output, an open batch size and no other domains."""
    check_interface(contents[precision])


def test_fp32_equals_reference(contents: dict[str, bytes], model: Manifest, arrays: Any) -> None:
    """The network that ships computes the same as the reference in NumPy."""
    images = coarse(20)
    mean, std = model.normalisation.mean, model.normalisation.std
    expected = reference.probabilities(arrays, images, mean, std)
    assert np.abs(softmax(logits(contents["fp32"], images)) - expected).max() < 1e-5


def test_fp16_is_close_to_fp32(contents: dict[str, bytes]) -> None:
    """In fp16, parameters are float16, and probabilities differ by less than 0.01."""
    images = coarse(50)
    exact, half = (softmax(logits(contents[each], images)) for each in ("fp32", "fp16"))
    assert np.abs(exact - half).max() < 0.01
    loaded = onnx.load_from_string(contents["fp16"])
    types = Counter(each.data_type for each in loaded.graph.initializer)
    assert types == {
        onnx.TensorProto.FLOAT16: len(loaded.graph.initializer) - 2,
        onnx.TensorProto.FLOAT: 2,  # normalization of the pixels
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_arguments_give_the_same_bytes(
    contents: dict[str, bytes], model: Manifest, arrays: Any, precision: str
) -> None:
    """A file can be recognized by its checksum."""
    again: Callable[..., bytes] = getattr(writer, precision)
    assert again(model, arrays) == contents[precision]


def test_parameters_of_another_network(model: Manifest, arrays: Any) -> None:
    """Parameters that do not fit the architecture are rejected."""
    changed = model.model_copy(update={"architecture": "cifar_resnet56_v1"})
    with pytest.raises(BadParams, match=r"do not fit the network \(missing"):
        writer.fp32(changed, arrays)


def test_parameter_exceeds_float16(model: Manifest, arrays: Any) -> None:
    """A parameter that float16 cannot represent is an error that names it."""
    changed = {**arrays, "output.bias": np.full(10, 1e5, np.float32)}
    with pytest.raises(BadModel, match=r"output\.bias has values that float16 cannot represent"):
        writer.fp16(model, changed)


def test_missing_package(monkeypatch: pytest.MonkeyPatch, model: Manifest, arrays: Any) -> None:
    """The error says which extra to install."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra 'shoal\[export\]'"):
        writer.fp32(model, arrays)
