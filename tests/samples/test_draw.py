"""The sample pictures: drawn by `samples.draw`, and recognized by the network that ships."""

from __future__ import annotations

import pathlib

import httpx
import numpy as np
import pytest
from PIL import Image

from samples.draw import FOLDER, PICTURES, write
from tests.e2e.process import REAL, Server

NAMES = sorted(PICTURES)


def pixels(path: pathlib.Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int16)


def test_write_draws_the_pictures_of_the_folder(tmp_path: pathlib.Path) -> None:
    """The folder holds what the script draws, but for the rounding of another JPEG encoder."""
    write(tmp_path)
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES
    for name in NAMES:
        drawn, stored = pixels(tmp_path / f"{name}.jpg"), pixels(FOLDER / f"{name}.jpg")
        assert np.abs(drawn - stored).mean() < 1, name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_samples_are_recognized(precision: str) -> None:
    """The network that ships gives each picture its class, with a probability of at least 0.95."""
    with Server(*REAL, SHOAL_PRECISION=precision) as server:
        server.wait_until_ready()
        for name in NAMES:
            image = (FOLDER / f"{name}.jpg").read_bytes()
            answer = httpx.post(f"{server.url}/predict", files={"img": image}).json()
            assert answer["class"] == name
            assert answer["probability"] >= 0.95, name
