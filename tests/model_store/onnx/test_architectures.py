"""Graphs of architectures have GluonCV's parameters, and compute the same as MXNet."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from model_store import manifest
from model_store.manifest import BadModel
from model_store.onnx import architectures, writer
from model_store.params import check_params, read_params
from tests.model_store.onnx.running import coarse, logits, softmax


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES)
def test_network_equals_mxnet(architecture: str, shipped: pathlib.Path) -> None:
    """Every architecture has GluonCV's parameters, and computes the same probabilities."""
    from model_store.architectures import build
    from model_store.runtime import MXNetUnavailable, load_mxnet

    try:
        mx = load_mxnet(threads=1)
        network = build(architecture, 10)
    except (MXNetUnavailable, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    mx.random.seed(7)
    network.initialize(mx.init.Xavier(magnitude=3))
    network(mx.nd.zeros((1, 3, 32, 32)))
    parameters = network._collect_params_with_prefix()
    for name, parameter in parameters.items():
        if name.endswith(("gamma", "beta", "running_mean", "running_var")):
            parameter.set_data(mx.nd.random.uniform(0.5, 2, parameter.shape))
    arrays = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    shapes = architectures.build(architecture, 10, "x").shapes
    assert {name: array.shape for name, array in arrays.items()} == shapes

    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    images = coarse(3)
    model = manifest.read(shipped)
    mean, std = model.normalisation.mean, model.normalisation.std
    normalized = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    expected = network(mx.nd.array(normalized)).asnumpy()
    changed = model.model_copy(update={"architecture": architecture})
    computed = logits(writer.fp32(changed, arrays), images)
    spread = np.abs(expected).max()  # of random parameters: softmax alone would hide differences
    assert np.abs(softmax(computed / spread) - softmax(expected / spread)).max() < 1e-5


def test_architectures_are_those_of_mxnet() -> None:
    """Every architecture that MXNet can serve can be written, and no other."""
    from model_store.architectures import ARCHITECTURES

    assert set(architectures.ARCHITECTURES) == set(ARCHITECTURES)


def test_parameters_of_the_network_that_ships(shipped: pathlib.Path) -> None:
    """The names and shapes of parameters are those in GluonCV's files."""
    model = manifest.read(shipped)
    graph = architectures.build(model.architecture, len(model.classes), "x")
    check_params(read_params(shipped / model.parameters.file), graph.shapes)


def test_unknown_architecture() -> None:
    """The error lists the known architectures."""
    with pytest.raises(BadModel, match=r"unknown architecture 'vgg'; known: cifar_resnet20_v1"):
        architectures.build("vgg", 10, "x")
