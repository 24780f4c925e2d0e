"""Measures the accuracy and the calibration of a version, with the engine that servers use."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from model_store import backends, versions
from model_store.backend import BackendChoice
from model_store.batch import Rows
from model_store.engine import load_engine
from model_store.manifest import BackendName, BadModel, Manifest, PrecisionName
from model_store.onnx import files
from model_store.precision import Precision, PrecisionUnavailable, is_offered
from model_store.store import probabilities
from model_store.training import cifar10, evaluation
from model_store.training.evaluation import Evaluation

BATCH = 64
"""Number of images in a batch of a measurement."""
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "int8", "fp16")

Key = tuple[BackendName, PrecisionName]


@dataclass(frozen=True)
class Measured:
    """Results of a version, and what computed them."""

    evaluation: Evaluation
    backend: BackendChoice
    precision: Precision


async def evaluate(
    folder: pathlib.Path,
    test: cifar10.Split,
    device: str,
    threads: int,
    precision: str = "auto",
    backend: str = "auto",
    done: Callable[[int], object] = lambda images: None,
) -> Measured:
    """Measure a version.

    Args:
        folder: Folder of the version.
        test: Images and labels.
        device: auto, cpu, gpu or gpu:N.
        threads: Number of CPU threads.
        precision: auto, fp32, int8 or fp16.
        backend: auto, mxnet or onnxruntime.
        done: Function that is called after each batch with the number of images in the batch. The
            default does nothing.

    Raises:
        BadModel: The version is invalid, or its classes differ from CIFAR-10's classes.
        BadParams, DeviceUnavailable, BackendUnavailable, PrecisionUnavailable.
    """
    options = (device, threads, BATCH, precision)
    async with load_engine(folder, *options, backend=backend) as engine:
        check_classes(folder, engine.model)
        rows = await probabilities(engine, test.images, done)
        measured = evaluation.evaluate(rows, test.labels, engine.model.classes)
        return Measured(measured, engine.backend, engine.precision)


async def outputs(
    folder: pathlib.Path, sets: Sequence[cifar10.Images], device: str, threads: int
) -> dict[Key, list[Rows]]:
    """Compute probabilities with every installed backend in every precision of a version.

    fp32 and int8 are computed on the CPU. fp16 is computed on the GPU that `device` selects. If
    `device` selects no GPU, the ONNX file in fp16 is computed on the CPU, and fp16 with MXNet is
    left out.

    Args:
        folder: Folder of the version.
        sets: Sets of images, each uint8 (n, 32, 32, 3).
        device: auto, cpu, gpu or gpu:N.
        threads: Number of CPU threads.

    Returns:
        Backend and precision -> the probabilities of each set, float32 (n, classes). The result
        contains fp32.

    Raises:
        BadModel, BadParams, DeviceUnavailable, BackendUnavailable.
    """
    model = versions.read_manifest(folder)
    computed: dict[Key, list[Rows]] = {}
    for backend in backends.able(model):
        for precision in PRECISIONS:
            if is_offered(precision, model, backend):
                on = device if precision == "fp16" else "cpu"
                options = (on, threads, BATCH, precision)
                with suppress(PrecisionUnavailable):  # fp16 without a GPU
                    async with load_engine(folder, *options, backend=backend) as engine:
                        rows = [await probabilities(engine, images) for images in sets]
                    computed[backend, precision] = rows
        half = model.onnx.get("fp16")
        if backend == "onnxruntime" and half and ("onnxruntime", "fp16") not in computed:
            # ONNX Runtime can also run this file on a CPU, slowly, with nearly the same results.
            content = files.read(folder, half)
            computed["onnxruntime", "fp16"] = [
                files.probabilities(content, model, images, threads) for images in sets
            ]
    return computed


def check_classes(folder: pathlib.Path, model: Manifest) -> None:
    """Raise BadModel if the classes of the version in `folder` differ from CIFAR-10's classes."""
    if model.classes != cifar10.CLASSES:
        raise BadModel(f"{folder}: the version's classes differ from CIFAR-10's classes")
