"""The reference in tests/reference.py is compared with MXNet before it is used in other tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store.backend import BackendUnavailable
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet
from model_store.params import read_params
from tests.reference import EPSILON, MEAN, STD, probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]


@pytest.fixture(scope="module")
def images() -> Any:
    """Coarse colored squares with a little noise, which differ as much as photographs do."""
    random = np.random.default_rng(5)
    squares = random.integers(0, 256, (50, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    noise = random.integers(-20, 21, (50, 32, 32, 3))
    return np.clip(squares + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def net(images: Any) -> Any:
    """A network with random weights, whose running statistics are not 0 and 1."""
    try:
        mx = load_mxnet(threads=1)
        net = build("cifar_resnet20_v1", classes=10)
    except (BackendUnavailable, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    mx.random.seed(20)
    net.initialize(mx.init.Xavier(magnitude=3))
    net(mx.nd.zeros((1, 3, 32, 32)))  # the first layer learns its shape
    for name, parameter in net.collect_params(".*(gamma|beta)").items():
        middle = 1 if name.endswith("gamma") else 0
        parameter.set_data(mx.nd.random.normal(middle, 0.3, shape=parameter.shape))
    for _ in range(10):
        with mx.autograd.train_mode():
            net(_inputs(mx, images)).wait_to_read()
    # Centred and spread out, so that the classes share the images among them.
    net.output.weight.set_data(10 * net.output.weight.data())
    net.output.bias.set_data(-net(_inputs(mx, images)).mean(axis=0))
    return net


def test_reference_agrees_with_mxnet(net: Any, images: Any, tmp_path: Path) -> None:
    """The NumPy reference and MXNet compute the same probabilities from the same file."""
    mx = load_mxnet(threads=1)
    net.save_parameters(str(tmp_path / "net.params"))

    ours = probabilities(read_params(tmp_path / "net.params"), images)
    theirs = mx.nd.softmax(net(_inputs(mx, images))).asnumpy()

    assert len(set(ours.argmax(axis=1))) > 5, "a network of one answer proves little"
    assert np.abs(ours - theirs).max() < 1e-5
    assert np.abs(ours.sum(axis=1) - 1).max() < 1e-12


def test_reference_has_the_epsilon_of_the_network(net: Any) -> None:
    """It is the only number of the network that is not in a `.params` file."""
    layers = [layer for layer in _layers(net) if type(layer).__name__ == "BatchNorm"]
    assert len(layers) == 21
    assert {layer._kwargs["eps"] for layer in layers} == {EPSILON}


def test_reference_rejects_an_unused_array(net: Any, images: Any, tmp_path: Path) -> None:
    """An array that the reference ignored would not be checked."""
    net.save_parameters(str(tmp_path / "net.params"))
    arrays = read_params(tmp_path / "net.params")
    with pytest.raises(AssertionError, match="no part of the network"):
        probabilities({**arrays, "features.9.weight": arrays["output.bias"]}, images[:1])


def _inputs(mx: Any, images: Any) -> Any:
    return mx.nd.array(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2))


def _layers(block: Any) -> Any:
    yield block
    for child in block._children.values():
        yield from _layers(child)
