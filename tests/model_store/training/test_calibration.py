"""The version that `calibrate` adds, and the figures that `evaluate` prints."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from model_store import backends, manifest, probes, versions
from model_store.__main__ import main
from model_store.manifest import Manifest
from model_store.params import read_params, sha256
from model_store.training import cifar10
from model_store.training.evaluation import tempered
from tests.reference import probabilities

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]


@pytest.fixture(scope="module")
def described(calibrated: pathlib.Path) -> Manifest:
    return versions.read_manifest(calibrated)


def test_same_network(described: Manifest, calibrated: pathlib.Path, model: pathlib.Path) -> None:
    """The parameters are the same bytes, and the manifest says where they come from."""
    source = manifest.read(model)
    assert (calibrated / "net.params").read_bytes() == (model / "net.params").read_bytes()
    assert described.parameters == source.parameters
    assert described.training == source.training
    assert described.derived_from is not None
    assert described.derived_from.version == source.version
    assert described.derived_from.sha256 == sha256(model / manifest.MANIFEST)


@pytest.mark.parametrize("backend", backends.installed())
def test_measured_with_every_backend(described: Manifest, backend: str) -> None:
    """Accuracy is measured with every installed backend, on every test image. Without a GPU, fp16
    is measured with ONNX Runtime only."""
    measured = [one for one in described.measured if one.backend == backend]
    expected = {"mxnet": ["fp32", "int8"], "onnxruntime": ["fp32", "int8", "fp16"]}
    assert [one.precision for one in measured] == expected[backend]
    assert {one.images for one in measured} == {16}
    if backend == "mxnet":
        assert described.int8 is not None and described.int8.images == 80


def test_temperature(described: Manifest, calibrated: pathlib.Path, tiny: pathlib.Path) -> None:
    """The temperature makes the labels of the images at even places most likely."""
    assert described.temperature is not None
    test = cifar10.read_test(tiny)
    arrays = read_params(calibrated / "net.params")
    rows = probabilities(arrays, test.images[::2]).astype(np.float32)

    def loss(temperature: float) -> float:
        right = tempered(rows, temperature)[np.arange(8), test.labels[::2]]
        return float(-np.log(right).mean())

    value = described.temperature.value
    assert loss(value) <= min(loss(value * 0.98), loss(value * 1.02))
    halves = (described.temperature.fitted_on, described.temperature.measured_on)
    assert [half.split()[0] for half in halves] == ["8", "8"]


def test_probes_are_tempered(described: Manifest, calibrated: pathlib.Path) -> None:
    """The recorded probes have the temperature that is served."""
    assert described.temperature is not None
    expected = probabilities(
        read_params(calibrated / "net.params"),
        probes.images(),
        temperature=described.temperature.value,
    )
    for backend in backends.installed():
        recorded = np.array(described.recorded_probes("fp32", backend))
        assert np.abs(recorded - expected).max() < 1e-4
        assert np.array(described.recorded_probes("int8", backend)).shape == expected.shape


def test_calibrating_again(
    calibrated: pathlib.Path, tiny: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrating a calibrated version gives the same temperature and ranges."""
    store = calibrated.parents[1]
    options = ["--data", str(tiny), "--store", str(store), "--device", "cpu", "--threads", "1"]
    assert main(["calibrate", "cifar_resnet20_v1/1", *options]) == 0
    assert "calibration error" in capsys.readouterr().out
    again, first = manifest.read(calibrated.parent / "2"), manifest.read(calibrated)
    assert again.temperature == first.temperature
    assert again.int8 == first.int8


def test_other_classes(
    calibrated: pathlib.Path,
    tiny: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A network of other classes is rejected."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"animal {number}" for number in range(10)))
    store = str(tmp_path / "store")
    options = ["--store", store, "--name", "zoo", "--classes", str(labels)]
    assert main(["import", str(calibrated / "net.params"), *options]) == 0
    assert main(["calibrate", "zoo", "--store", store, "--data", str(tiny)]) == 2
    assert "differ from CIFAR-10's classes" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "store" / "zoo").iterdir()] == ["1"]
    imported = manifest.read(tmp_path / "store" / "zoo" / "1")
    assert imported.recorded_probes("fp32", backends.installed()[0])
