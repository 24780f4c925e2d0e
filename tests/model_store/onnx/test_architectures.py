"""The graphs of GluonCV's networks: names, shapes and errors. `test_writer` compares the results."""

from __future__ import annotations

import pytest

from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.onnx.architectures import BUILDERS, build
from model_store.params import read_params


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
