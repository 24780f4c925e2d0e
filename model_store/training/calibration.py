"""Quantizes a version to int8 and calibrates its probabilities: `python -m model_store calibrate`.

The result is a new version with the same parameters. The new manifest also contains the ranges of
tensors that int8 needs, the temperature, the accuracy in every precision, and the probabilities of
the probe images (see `probes`). The source version does not change.

The ranges are observed on `SAMPLE` training images. The temperature, a number that divides the
logits, is fitted on every second test image. The calibration error is measured on the other test
images. Training images are not used to fit the temperature, because networks are overconfident on
images that they were trained on (docs/decisions/0025-temperature-from-test-images.md). The accuracy
is measured on all test images, because the temperature does not change the predicted class of an
image.
"""

from __future__ import annotations

import pathlib

import numpy as np

from model_store import backends, manifest, probes, store, versions
from model_store.batch import BatchFormat
from model_store.files import read_regular
from model_store.manifest import Int8, Manifest, Measurement, Origin, Temperature
from model_store.mxnet.int8 import Quantizable
from model_store.mxnet.network import build_filled
from model_store.mxnet.runtime import load_mxnet
from model_store.params import Arrays, sha256
from model_store.training import cifar10, measurement
from model_store.training.evaluation import Probabilities, evaluate, fit_temperature, tempered
from model_store.training.measurement import Key

SAMPLE = 2048
"""Number of training images on which the ranges are observed."""
SEED = 1
"""Seed of the random choice of these training images."""


async def calibrate(
    folder: pathlib.Path,
    data: pathlib.Path,
    into: pathlib.Path,
    version: str,
    device: str = "auto",
    threads: int = 1,
) -> pathlib.Path:
    """Add a calibrated copy of a version to a store, and return the folder of the copy.

    Args:
        folder: Folder of the source version.
        data: Folder of CIFAR-10's binary version.
        into: Folder of the store that the copy is added to.
        version: Number of the copy.
        device: auto, cpu, gpu or gpu:N; see `measurement.outputs`.
        threads: Number of CPU threads.

    Raises:
        BadModel: A version is invalid, or its classes differ from CIFAR-10's classes.
        BadDataset, BadParams, DeviceUnavailable, BackendUnavailable, OSError.
    """
    source = versions.read_manifest(folder)
    measurement.check_classes(folder, source)
    train, test = cifar10.read_train(data), cifar10.read_test(data)
    with versions.adding(into, source.name, version) as partial:
        copied = read_regular(folder / source.parameters.file, source.parameters.bytes)
        path = partial / source.parameters.file
        path.write_bytes(copied)
        model = source.model_copy(
            update={
                "version": version,
                "derived_from": _origin(folder, source),
                "measured": (),
                "temperature": None,
                "int8": None,
                "probes": {},
                "onnx": {},
            }
        )
        sample = np.random.default_rng(SEED).permutation(len(train.images))[:SAMPLE]
        arrays = versions.read_parameters(path, source.parameters)
        if "mxnet" in backends.installed():
            int8 = _int8(model, arrays, train.images[sample], len(train.images), threads)
            model = model.model_copy(update={"int8": int8})
        model = store.with_onnx(model, partial, arrays, train.images[sample])
        manifest.write(partial, model)
        outputs = await measurement.outputs(
            partial, [test.images, probes.images()], device, threads
        )
        manifest.write(partial, _described(model, outputs, test))
        await store.verify(partial)
    return versions.folder(into, source.name, version)


def _int8(model: Manifest, arrays: Arrays, images: cifar10.Images, of: int, threads: int) -> Int8:
    mx = load_mxnet(threads, in_order=True)
    network = build_filled(mx, model, mx.cpu(), arrays)
    parts = np.array_split(images, range(measurement.BATCH, len(images), measurement.BATCH))
    batch_format = BatchFormat(model, [measurement.BATCH])
    ranges = Quantizable(mx, network).observe([batch_format.assemble(list(part)) for part in parts])
    return Int8(
        calibrated_on=f"CIFAR-10, {len(images):,} of the {of:,} training images, "
        f"drawn with seed {SEED}",
        images=len(images),
        ranges=ranges,
    )


def _described(
    model: Manifest, outputs: dict[Key, list[Probabilities]], test: cifar10.Split
) -> Manifest:
    """Return the manifest with the results.

    `outputs` has the probabilities of the test images and of the probe images, at a temperature of
    1.
    """
    exact = next(rows for (_, precision), (rows, _) in outputs.items() if precision == "fp32")
    temperature = _temperature(exact, test)
    measured = []
    recorded: dict[Key, manifest.ProbeRows] = {}
    for (backend, precision), (rows, probe_rows) in outputs.items():
        evaluation = evaluate(tempered(rows, temperature.value), test.labels, model.classes)
        measured.append(
            Measurement(
                on=f"CIFAR-10, the {len(test.images):,} images of test_batch.bin",
                images=evaluation.images,
                precision=precision,
                backend=backend,
                accuracy=evaluation.accuracy,
                negative_log_likelihood=round(evaluation.negative_log_likelihood, 4),
            )
        )
        recorded[backend, precision] = probes.record(tempered(probe_rows, temperature.value))
    return model.model_copy(
        update={
            "temperature": temperature,
            "measured": tuple(measured),
            "probes": {p: rows for (b, p), rows in recorded.items() if b == "mxnet"},
            "onnx": {
                precision: described.model_copy(
                    update={"probes": recorded["onnxruntime", precision]}
                )
                for precision, described in model.onnx.items()
            },
        }
    )


def _temperature(rows: Probabilities, test: cifar10.Split) -> Temperature:
    fitted, kept = slice(0, None, 2), slice(1, None, 2)
    value = round(fit_temperature(rows[fitted], test.labels[fitted]), 3)
    before, after = (
        evaluate(tempered(rows[kept], at), test.labels[kept], cifar10.CLASSES).calibration_error
        for at in (1.0, value)
    )
    count = len(test.images)
    return Temperature(
        value=value,
        fitted_on=f"{(count + 1) // 2:,} images of test_batch.bin (even indices)",
        measured_on=f"{count // 2:,} images of test_batch.bin (odd indices)",
        calibration_error=round(after, 4),
        calibration_error_before=round(before, 4),
    )


def _origin(folder: pathlib.Path, source: Manifest) -> Origin:
    return Origin(
        name=source.name, version=source.version, sha256=sha256(folder / manifest.MANIFEST)
    )
