"""`python -m model_store train`: CIFAR-10 in, a version of the store out.

Promises: on a CPU, the same seed and number of threads give the same weights; Ctrl-C loses nothing
and the same command goes on where it stopped, ending in the same weights as an uninterrupted run;
the test images are measured on after every epoch and never used to choose anything: what is
shipped is the average of the last steps, whatever its accuracy.
"""

from __future__ import annotations

import dataclasses
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from matplotlib.figure import Figure
from tqdm import tqdm

from model_store import manifest, probes, versions
from model_store.params import Arrays, sha256
from model_store.training import checkpoint, cifar10
from model_store.training.checkpoint import Origin, Progress
from model_store.training.recipe import Recipe
from model_store.training.trainer import Training

PARAMS = "net.params"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the state is saved, the same command goes on."""


def train(
    recipe: Recipe,
    data: pathlib.Path,
    checkpoints: pathlib.Path,
    store: pathlib.Path,
    version: str,
    device: str,
    threads: int,
) -> pathlib.Path:
    """Train, or go on training, and return the new version's folder in `store`.

    Raises BadDataset, BadModel (the version exists), ValueError (checkpoint of another origin),
    DeviceUnavailable, MXNetUnavailable, OSError, Interrupted.
    """
    target = versions.vacant_folder(store, recipe.architecture, version)  # now, not hours later
    train_split, test_split = cifar10.read_train(data), cifar10.read_test(data)
    batches = len(train_split.images) // recipe.batch_size
    if batches == 0:
        raise ValueError(f"{len(train_split.images)} images do not fill a batch: --batch-size")
    start, digest = _read_start(store, recipe.start)
    data_digest = cifar10.fingerprint(train_split, test_split)
    origin = Origin(recipe, data_digest, threads, digest)
    saved = checkpoint.newest(checkpoints)
    if saved is not None:
        checkpoint.check_origin(saved, origin)
    training = Training(origin, device, batches, start)
    if saved is not None:
        training.load(saved)
        print(f"going on from step {training.progress.step} of {training.steps}", flush=True)
    print(f"training on {training.device.name} ({training.device.reason})", flush=True)
    _run(training, train_split, test_split, checkpoints)
    _ship(training, train_split, test_split, store, version)
    return target


def _read_start(store: pathlib.Path, start: str) -> tuple[Arrays | None, str]:
    """The parameters of `name/version` and their SHA-256. Raises BadModel, BadParams."""
    if not start:
        return None, ""
    name, _, version = start.partition("/")
    folder = versions.folder(store, name, version)
    model = versions.read_manifest(folder)
    arrays = versions.read_parameters(folder / model.parameters.file, model.parameters)
    return arrays, model.parameters.sha256


def _run(
    training: Training, train: cifar10.Split, test: cifar10.Split, checkpoints: pathlib.Path
) -> None:
    size, done = training.recipe.batch_size, training.progress.step
    if done == training.steps:
        return
    bar = tqdm(
        total=training.steps * size,
        initial=done * size,
        unit="image",
        unit_scale=True,
        smoothing=0.05,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    )
    with bar, _stop_asked() as stop:
        for progress in training.run(train, test):
            bar.update(size)
            closed, stopped = progress.step % training.batches == 0, bool(stop)
            if closed or stopped:
                training.save(checkpoints)
            if closed:
                _plot(progress, checkpoints / "training.png")
                last = progress.epochs[-1]
                bar.write(
                    f"epoch {len(progress.epochs)}/{training.recipe.epochs}: "
                    f"loss {last['loss']:.3f}, train {last['train_accuracy']:.2%}, "
                    f"test {last['test_accuracy']:.2%}"
                )
            if stopped:
                raise Interrupted(
                    f"stopped at step {progress.step} of {training.steps}, saved in {checkpoints}; "
                    "the same command goes on from here"
                )


@contextmanager
def _stop_asked() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM arrives, so that a step is never torn."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ship(
    training: Training,
    train: cifar10.Split,
    test: cifar10.Split,
    store: pathlib.Path,
    version: str,
) -> None:
    """Add the version: parameters, plot, manifest."""
    with versions.adding(store, training.recipe.architecture, version) as partial:
        training.save_average(partial / PARAMS)
        _plot(training.progress, partial / "training.png")
        manifest.write(partial, _describe(training, train, test, version, partial / PARAMS))


def _describe(
    training: Training,
    train: cifar10.Split,
    test: cifar10.Split,
    version: str,
    params: pathlib.Path,
) -> manifest.Manifest:
    recipe = dataclasses.asdict(training.recipe)
    return manifest.Manifest(
        name=recipe.pop("architecture"),
        version=version,
        architecture=training.recipe.architecture,
        classes=cifar10.CLASSES,
        normalisation=manifest.Normalization(mean=cifar10.MEAN, std=cifar10.STD),
        parameters=manifest.Parameters(
            file=params.name, bytes=params.stat().st_size, sha256=sha256(params)
        ),
        training={
            **recipe,
            "data": f"CIFAR-10, {len(train.images):,} training images",
            "device": training.device.name,
            "threads": training.origin.threads,
            "mxnet": training.mxnet_version,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "final_loss": round(training.progress.epochs[-1]["loss"], 4),
        },
        measured=(
            manifest.Measurement(
                on=f"CIFAR-10, the {len(test.images):,} images of test_batch.bin, fp32, "
                "measured after training and never used to choose anything",
                images=len(test.images),
                accuracy=training.accuracy(test),
            ),
        ),
        probes={"fp32": probes.record(training.probabilities(probes.images()))},
    )


def _plot(progress: Progress, path: pathlib.Path) -> None:
    """Loss and accuracy by epoch as a PNG."""
    epochs = range(1, len(progress.epochs) + 1)
    figure = Figure(figsize=(9, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [epoch["loss"] for epoch in progress.epochs])
    loss.set(title="Training loss", xlabel="epoch", ylabel="cross entropy")
    for key, label in (("train_accuracy", "training, augmented"), ("test_accuracy", "test")):
        accuracy.plot(epochs, [100 * epoch[key] for epoch in progress.epochs], label=label)
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="%")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})
