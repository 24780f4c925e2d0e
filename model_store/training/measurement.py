"""Measures a version on labeled images, through the same engine that serves it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from model_store.engine import load_engine
from model_store.manifest import BadModel
from model_store.precision import Precision
from model_store.store import probabilities
from model_store.training import cifar10, evaluation
from model_store.training.evaluation import Evaluation

BATCH = 64
"""Images in a batch of a measurement."""


async def evaluate(
    folder: pathlib.Path,
    test: cifar10.Split,
    device: str,
    threads: int,
    precision: str = "auto",
    done: Callable[[int], object] = lambda images: None,
) -> tuple[Evaluation, Precision]:
    """Measure the version in `folder` as it would be served; also return the precision used.

    `done` is called after each batch with the number of images in it.

    Raises BadModel if the classes are not those of CIFAR-10.
    """
    async with load_engine(folder, device, threads, BATCH, precision) as engine:
        if engine.model.classes != cifar10.CLASSES:
            raise BadModel(f"{folder}: its classes are not those of CIFAR-10")
        rows = await probabilities(engine, test.images, done)
        return evaluation.evaluate(rows, test.labels, engine.model.classes), engine.precision
