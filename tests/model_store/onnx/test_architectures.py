"""Graphs of architectures have GluonCV's parameters, and compute the same as MXNet."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from model_store import manifest
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.backend import BackendUnavailable
from model_store.onnx import writer
from model_store.onnx.architectures import BUILDERS, build
from model_store.params import read_params
from tests.model_store.onnx.running import coarse, logits, softmax


def test_every_architecture_has_a_builder() -> None:
    """No architecture can be served with one backend only."""
    assert set(BUILDERS) == set(ARCHITECTURES)


def test_build_names_the_parameters_of_the_network_that_ships(shipped: object) -> None:
    """Names and shapes are those of the file that GluonCV's network saved."""
    arrays = read_params(f"{shipped}/net.params")
    graph = build("cifar_resnet20_v1", 10, "x")
    assert {name: tuple(shape) for name, shape in graph.shapes.items()} == {
        name: array.shape for name, array in arrays.items()
    }


@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_build_gives_the_last_layer_one_output_for_each_class(
    architecture: str, classes: int
) -> None:
    """Whatever the architecture."""
    graph = build(architecture, classes, "x")
    assert graph.shapes["output.bias"] == (classes,)
    assert graph.shapes["output.weight"][0] == classes


def test_build_rejects_other_names() -> None:
    """The message lists the names."""
    with pytest.raises(UnknownArchitecture, match="unknown architecture 'vgg'; known: cifar_res"):
        build("vgg", 10, "x")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
@pytest.mark.parametrize("architecture", BUILDERS)
def test_network_equals_mxnet(architecture: str, shipped: pathlib.Path) -> None:
    """Every architecture has GluonCV's parameters, and computes the same probabilities."""
    from model_store.mxnet.architectures import build as build_gluon
    from model_store.mxnet.runtime import load_mxnet

    try:
        mx = load_mxnet(threads=1)
        network = build_gluon(architecture, 10)
    except (BackendUnavailable, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    mx.random.seed(7)
    network.initialize(mx.init.Xavier(magnitude=3))
    network(mx.nd.zeros((1, 3, 32, 32)))
    parameters = network._collect_params_with_prefix()
    for name, parameter in parameters.items():
        if name.endswith(("gamma", "beta", "running_mean", "running_var")):
            parameter.set_data(mx.nd.random.uniform(0.5, 2, parameter.shape))
    arrays = {name: parameter.data().asnumpy() for name, parameter in parameters.items()}
    shapes = build(architecture, 10, "x").shapes
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
