"""Files that are quantized to int8 have the right format and the accuracy of fp32."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store import manifest
from model_store.onnx import writer
from model_store.onnx.quantization import quantize
from model_store.params import read_params
from tests.model_store.onnx.running import check_interface, coarse, logits

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


@pytest.fixture(scope="module")
def exact(shipped: pathlib.Path) -> bytes:
    """The fp32 file of the network that ships."""
    model = manifest.read(shipped)
    return writer.fp32(model, read_params(shipped / model.parameters.file))


@pytest.fixture(scope="module")
def quantized(exact: bytes) -> bytes:
    return quantize(exact, coarse(70))


def test_interface(quantized: bytes) -> None:
    """The input, the output and the versions are those of the fp32 file."""
    check_interface(quantized)


def test_all_but_the_ends_is_quantized(quantized: bytes) -> None:
    """All convolutions except the first have int8 weights for each channel and uint8 inputs."""
    graph = onnx.load_from_string(quantized).graph
    constants = {each.name: each for each in graph.initializer}
    dequantized = {
        node.output[0]: constants[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    first, *others = (node for node in graph.node if node.op_type == "Conv")
    assert constants[first.input[1]].data_type == onnx.TensorProto.FLOAT
    assert len(others) == 20
    for node in others:
        assert dequantized[node.input[1]].data_type == onnx.TensorProto.INT8
    zeros = {
        constants[node.input[2]].data_type
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert zeros == {onnx.TensorProto.UINT8}


@pytest.mark.slow
def test_accuracy(data: pathlib.Path, exact: bytes) -> None:
    """On 1,000 test images of CIFAR-10, int8 is at most one point less accurate than fp32."""
    folder = data / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 in {data}")
    labels = np.load(folder / "labels.npz")["test"][:1000]

    def sheet(name: str) -> Any:
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        return pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)

    images = sheet("test_00.webp")
    full = logits(exact, images).argmax(axis=1)
    reduced = logits(quantize(exact, sheet("train_00.webp")[:256]), images).argmax(axis=1)
    assert (reduced == labels).mean() > (full == labels).mean() - 0.01
    assert (reduced == full).mean() > 0.98


def test_same_arguments_give_the_same_bytes(exact: bytes, quantized: bytes) -> None:
    """A file can be recognized by its checksum."""
    assert quantize(exact, coarse(70)) == quantized


def test_without_images(exact: bytes) -> None:
    """Images are needed to observe the ranges."""
    with pytest.raises(ValueError, match="calibration images"):
        quantize(exact, coarse(0))


def test_missing_package(monkeypatch: pytest.MonkeyPatch, exact: bytes) -> None:
    """The error says which extra to install."""
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ModuleNotFoundError, match=r"install the extra 'shoal\[onnx\]'"):
        quantize(exact, coarse(1))
