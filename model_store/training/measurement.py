"""Measures the accuracy and the calibration of a version, with the engine that servers use."""

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
"""Number of images in a batch of a measurement."""


async def evaluate(
    folder: pathlib.Path,
    test: cifar10.Split,
    device: str,
    threads: int,
    precision: str = "auto",
    done: Callable[[int], object] = lambda images: None,
) -> tuple[Evaluation, Precision]:
    """Measure a version, and return the results and the precision that was used.

    Args:
        folder: Folder of the version.
        test: Images and labels.
        device: auto, cpu, gpu or gpu:N.
        threads: Number of CPU threads.
        precision: auto, fp32, int8 or fp16.
        done: Function that is called after each batch with the number of images in the batch. The
            default does nothing.

    Raises:
        BadModel: The version is invalid, or its classes differ from CIFAR-10's classes.
        BadParams, DeviceUnavailable, BackendUnavailable, PrecisionUnavailable.
    """
    async with load_engine(folder, device, threads, BATCH, precision) as engine:
        if engine.model.classes != cifar10.CLASSES:
            raise BadModel(f"{folder}: the version's classes differ from CIFAR-10's classes")
        rows = await probabilities(engine, test.images, done)
        return evaluation.evaluate(rows, test.labels, engine.model.classes), engine.precision
