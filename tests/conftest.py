"""What several test modules need: data that may be missing, and a model to serve."""

from __future__ import annotations

import os
import pathlib

import pytest

from model_store import manifest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data() -> pathlib.Path:
    """The folder with labelled photos and odd files, where there is one."""
    folder = pathlib.Path(os.environ.get("SHOAL_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data: SHOAL_DATA names no folder ({folder})")
    return folder


@pytest.fixture(scope="session")
def model() -> pathlib.Path:
    """The version that ships and is served by default."""
    name = "cifar_resnet20_v1"
    return manifest.folder(manifest.STORE, name, manifest.latest(manifest.STORE, name))
