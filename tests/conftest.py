"""Fixtures for all tests: data that may be missing, models to serve, and checks around tests."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageFile

from model_store import manifest, versions
from model_store.__main__ import main
from model_store.params import read_params
from tests.leftovers import no_process_left
from tests.reference import probabilities

# On a busy machine neither an example nor generating it has a time limit.
settings.register_profile("shoal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shoal")

IMAGES = 16
ROOT = pathlib.Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of MXNet's backend, and tests with the mark `mxnet`, where it is missing."""
    if importlib.util.find_spec("mxnet") is None:
        for item in items:
            if item.get_closest_marker("mxnet") or "mxnet" in item.path.parent.parts:
                item.add_marker(pytest.mark.skip(reason="MXNet is not installed"))


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fails at the end of the session if a process that a test started still runs."""
    with no_process_left():
        yield


@pytest.fixture(autouse=True)
def pillow_limits() -> Iterator[None]:
    """Restores limits of Pillow, which decoder processes and tests change."""
    pixels, truncated = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    yield
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = pixels, truncated


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The folder with labeled photos and unusual files. Skips the test if there is none."""
    folder = pathlib.Path(os.environ.get("SHOAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data: SHOAL_DATA is not a folder ({folder})")
    return folder


@pytest.fixture(scope="session")
def shipped() -> pathlib.Path:
    """The version that is served by default."""
    name = "cifar_resnet20_v1"
    return versions.folder(manifest.STORE, name, versions.latest(manifest.STORE, name))


@pytest.fixture(scope="session")
def model(shipped: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The network that ships, as version 1 of another store, with a minimal manifest: fp32, no
    temperature, no probes, so that tests may change its parameters."""
    folder = tmp_path_factory.mktemp("store") / shipped.parent.name / "1"
    shutil.copytree(shipped, folder)
    bare: dict[str, object] = {
        "version": "1",
        "derived_from": None,
        "temperature": None,
        "int8": None,
        "probes": {},
        "onnx": {},
    }
    manifest.write(folder, manifest.read(shipped).model_copy(update=bare))
    return folder


@pytest.fixture(scope="session")
def tiny(model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data set in CIFAR-10's format: 80 training images of colored squares and 16 test images.
    Three quarters of them have the label that the network that ships computes."""
    folder = tmp_path_factory.mktemp("tiny")
    arrays = read_params(model / "net.params")
    random = np.random.default_rng(1)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        coarse = random.integers(0, 256, (IMAGES, 3, 8, 8), dtype=np.uint8)
        planes = coarse.repeat(4, axis=2).repeat(4, axis=3)
        labels = probabilities(arrays, planes.transpose(0, 2, 3, 1)).argmax(axis=1)
        labels[::4] = random.integers(0, 10, len(labels[::4]))
        records = np.hstack([labels[:, None].astype(np.uint8), planes.reshape(IMAGES, -1)])
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.fixture(scope="session")
def calibrated(
    model: pathlib.Path, tiny: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The version that ships, calibrated again on `tiny`, in another store."""
    store = tmp_path_factory.mktemp("store")
    version = f"{model.parent.name}/{model.name}"
    options = ["--store", str(model.parents[1]), "--data", str(tiny), "--into", str(store)]
    options += ["--device", "cpu", "--threads", "1"]
    assert main(["calibrate", version, *options]) == 0
    return store / model.parent.name / "1"
