"""ONNX Runtime computes the same from an exported file as MXNet from the version."""

from __future__ import annotations

import asyncio
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from model_store import manifest, store
from model_store.__main__ import main
from model_store.engine import load_engine
from model_store.mxnet.architectures import build
from model_store.mxnet.runtime import load_mxnet
from model_store.training.export import export

pytest.importorskip("onnx", reason="the extra 'export' is not installed")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]


def served(folder: pathlib.Path, images: Any) -> Any:
    async def infer() -> Any:
        async with load_engine(folder, "cpu", 1, 8, "fp32") as engine:
            return await store.probabilities(engine, images)

    return asyncio.run(infer())


def check(folder: pathlib.Path, path: pathlib.Path) -> Any:
    """Compare with MXNet for one image and for five: the batch size is free."""
    model = manifest.read(folder)
    images = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    mean, std = model.normalisation.mean, model.normalisation.std
    pixels = ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (whole,) = session.run(["probabilities"], {"pixels": pixels})
    (first,) = session.run(None, {"pixels": pixels[:1]})
    assert np.abs(whole - served(folder, images)).max() < 1e-4
    assert np.abs(first - whole[:1]).max() < 1e-5
    return session


def test_the_version_that_ships(calibrated: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Temperature and softmax are in the graph; the metadata have classes and normalization."""
    path = tmp_path / "net.onnx"
    options = ["--store", str(calibrated.parents[1]), "--onnx", str(path)]
    assert main(["export", "cifar_resnet20_v1/1", *options]) == 0
    about = check(calibrated, path).get_modelmeta().custom_metadata_map
    model = manifest.read(calibrated)
    assert (about["model"], about["version"]) == (model.name, "1")
    assert tuple(json.loads(about["classes"])) == model.classes
    assert json.loads(about["normalisation"])["std"] == list(model.normalisation.std)


@pytest.mark.mxnet
@pytest.mark.parametrize("architecture", ["cifar_resnet20_v2", "cifar_resnext29_32x4d"])
def test_other_architectures(architecture: str, tmp_path: pathlib.Path) -> None:
    """BatchNorm without a scale or before convolutions, and grouped convolutions, are exported."""
    mx = load_mxnet(1)
    network = build(architecture, 10)
    network.initialize(mx.init.Xavier(magnitude=3))
    network(mx.nd.zeros((1, 3, 32, 32)))
    for name, parameter in network._collect_params_with_prefix().items():
        if name.endswith(("gamma", "running_var")):  # also of a scale that is held at 1
            parameter.set_data(mx.nd.random.uniform(0.5, 2, parameter.shape))
    network.save_parameters(str(tmp_path / "net.params"))
    options = ["--arch", architecture, "--store", str(tmp_path), "--name", "random"]
    assert main(["import", str(tmp_path / "net.params"), *options]) == 0
    export(tmp_path / "random" / "1", tmp_path / "net.onnx")
    check(tmp_path / "random" / "1", tmp_path / "net.onnx")
