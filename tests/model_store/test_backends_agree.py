"""The answers of the installed backends, compared with each other and with the NumPy reference."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_store import backends, versions
from model_store.engine import load_engine
from model_store.manifest import BackendName
from model_store.params import read_params
from model_store.store import probabilities
from tests import reference

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
MAX_DIFFERENCE = 1e-4
"""Maximum difference in a probability in fp32."""
MAX_LOSS = 0.003
"""Maximum loss of accuracy in int8 on 1,000 images or more, as a share of the images."""


def compute(folder: pathlib.Path, images: Any, precision: str, backend: str) -> Any:
    """The probabilities of images with a backend on the CPU."""

    async def run() -> Any:
        async with load_engine(folder, "cpu", 1, 64, precision, backend=backend) as engine:
            assert (engine.backend.name, engine.precision.name) == (backend, precision)
            return await probabilities(engine, images)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def noise() -> Any:
    """Coarse colored squares, which differ as much as photographs do: uint8 (300, 32, 32, 3)."""
    random = np.random.default_rng(17)
    squares = random.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)
    return squares.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(scope="module")
def cifar(data: pathlib.Path) -> tuple[Any, Any]:
    """CIFAR-10's test images in `data`, uint8 (n, 32, 32, 3), and their labels."""
    sheets = sorted((data / "cifar10").glob("test_*.webp"))
    if not sheets:
        pytest.skip(f"no CIFAR-10 in {data}")
    parts = []
    for sheet in sheets:
        pixels = np.asarray(Image.open(sheet).convert("RGB")).reshape(25, 32, 40, 32, 3)
        parts.append(pixels.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
    images = np.concatenate(parts)
    labels = np.load(data / "cifar10" / "labels.npz")["test"]
    assert len(images) == len(labels) >= 1000
    return images, labels


def numpy_rows(folder: pathlib.Path, images: Any) -> Any:
    model = versions.read_manifest(folder)
    assert model.temperature is not None
    arrays = read_params(folder / model.parameters.file)
    return reference.probabilities(arrays, images, temperature=model.temperature.value)


def agree(rows: Any, others: Any) -> None:
    """Fail unless the classes are the same and the probabilities are within `MAX_DIFFERENCE`."""
    assert (rows.argmax(axis=1) == others.argmax(axis=1)).all()
    assert np.abs(rows - others).max() < MAX_DIFFERENCE


@pytest.mark.parametrize("backend", backends.installed())
def test_fp32_agrees_with_the_reference(
    shipped: pathlib.Path, noise: Any, backend: BackendName
) -> None:
    """In fp32 each backend gives the classes of the NumPy reference, and its probabilities."""
    expected = numpy_rows(shipped, noise)
    assert len(set(expected.argmax(axis=1))) > 5, "a network of one answer proves little"
    agree(compute(shipped, noise, "fp32", backend), expected)


def test_fp32_agrees_on_cifar(shipped: pathlib.Path, cifar: tuple[Any, Any]) -> None:
    """In fp32 all backends give each test image the same class, and the same probabilities. The
    reference, which is slow, gives the same answers to every tenth image."""
    images, _ = cifar
    first, *others = [compute(shipped, images, "fp32", one) for one in backends.installed()]
    agree(first[::10], numpy_rows(shipped, images[::10]))
    for rows in others:
        agree(first, rows)


@pytest.mark.parametrize("backend", backends.installed())
def test_int8_is_as_accurate_as_fp32(
    shipped: pathlib.Path, cifar: tuple[Any, Any], backend: BackendName
) -> None:
    """On CIFAR-10's test images, int8 loses at most `MAX_LOSS` of the accuracy."""
    images, labels = cifar
    exact, rounded = (compute(shipped, images, one, backend) for one in ("fp32", "int8"))
    accuracy, reduced = ((rows.argmax(axis=1) == labels).mean() for rows in (exact, rounded))
    assert reduced >= accuracy - MAX_LOSS
    assert (rounded.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.98
