"""Answers: compares what backends answer to labeled images.

The answers are compared with those of the first backend, and with those of the NumPy reference in
tests/reference.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.served import Served
from model_store import versions
from model_store.engine import LaneEngine
from model_store.params import read_params
from model_store.store import probabilities
from model_store.training import cifar10
from tests import reference


@dataclass(frozen=True)
class Answers:
    """Answers to labeled images, compared with those of the first backend in fp32."""

    images: int
    accuracy: float
    same_class: float
    """Share of the images with the same class."""
    difference: float
    """Largest difference in a probability."""
    same_class_as_numpy: float
    difference_to_numpy: float


async def compare(
    folder: pathlib.Path, engines: Mapping[Served, LaneEngine], test: cifar10.Split
) -> dict[Served, Answers]:
    """Compute the answers of all engines to the same images, and compare them.

    Args:
        folder: Folder of the version, a cifar_resnet20_v1.
        engines: The engines. The first one is what the others are compared with.
        test: Images and labels.

    Raises:
        ValueError: The version has another architecture.
    """
    rows = {one: await probabilities(engine, test.images) for one, engine in engines.items()}
    exact = next(iter(rows.values()))
    numpy = _with_numpy(folder, test.images)
    return {
        one: Answers(
            images=len(test.images),
            accuracy=float((own.argmax(axis=1) == test.labels).mean()),
            same_class=_same_class(own, exact),
            difference=float(np.abs(own - exact).max()),
            same_class_as_numpy=_same_class(own, numpy),
            difference_to_numpy=float(np.abs(own - numpy).max()),
        )
        for one, own in rows.items()
    }


def _same_class(rows: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> float:
    return float((rows.argmax(axis=1) == others.argmax(axis=1)).mean())


def _with_numpy(folder: pathlib.Path, images: cifar10.Images) -> NDArray[np.float64]:
    model = versions.read_manifest(folder)
    if model.architecture != "cifar_resnet20_v1":
        raise ValueError("--data needs a cifar_resnet20_v1: the NumPy reference has only this one")
    arrays = read_params(folder / model.parameters.file)
    mean, std = model.normalisation.mean, model.normalisation.std
    temperature = model.temperature.value if model.temperature else 1.0
    parts = np.array_split(images, range(50, len(images), 50))
    return np.concatenate(
        [reference.probabilities(arrays, part, mean, std, temperature) for part in parts]
    )
