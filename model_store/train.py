"""`python -m model_store train`: CIFAR-10 in, a version of the store out.

Promises: on a CPU, the same seed and number of threads give the same weights; Ctrl-C loses nothing
and the same command goes on where it stopped, ending in the same weights as an uninterrupted run;
the test images are measured on after every epoch and never used to choose anything: what is
shipped is the average of the last steps, whatever its accuracy.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from model_store import cifar10, manifest
from model_store.params import sha256
from model_store.recipe import Recipe
from model_store.training import Progress, Training, checkpoint, recipe_of

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

    Raises BadDataset, BadModel (the version exists), ValueError (checkpoint of another recipe),
    DeviceUnavailable, MXNetUnavailable, Interrupted.
    """
    target = manifest.folder(store, recipe.architecture, version)
    if target.exists():
        raise manifest.BadModel(f"{target} exists; versions are never overwritten: --version")
    saved = checkpoint(checkpoints)
    if saved is not None and recipe_of(saved) != dataclasses.asdict(recipe):
        raise ValueError(
            f"{saved} was made by another recipe, {recipe_of(saved)}: "
            "name another --checkpoints folder, or use the same options"
        )
    train_split, test_split = cifar10.read_train(data), cifar10.read_test(data)
    batches = len(train_split.images) // recipe.batch_size
    if batches == 0:
        raise ValueError(f"{len(train_split.images)} images do not fill a batch: --batch-size")
    training = Training(recipe, device, threads, batches)
    if saved is not None:
        training.load(saved)
        print(f"going on from step {training.progress.step} of {training.steps}", flush=True)
    print(f"training on {training.device.name} ({training.device.reason})", flush=True)
    _run(training, train_split, test_split, checkpoints)
    _ship(training, train_split, test_split, target, version)
    return target


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
            if progress.step % training.batches == 0:
                training.save(checkpoints)
                _plot(progress, checkpoints / "training.png")
                last = progress.epochs[-1]
                bar.write(
                    f"epoch {len(progress.epochs)}/{training.recipe.epochs}: "
                    f"loss {last['loss']:.3f}, train {last['train_accuracy']:.2%}, "
                    f"test {last['test_accuracy']:.2%}"
                )
            if stop:
                training.save(checkpoints)
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
    target: pathlib.Path,
    version: str,
) -> None:
    """Write the version: parameters, plot, manifest; the folder appears whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    training.save_average(partial / PARAMS)
    _plot(training.progress, partial / "training.png")
    recipe = dataclasses.asdict(training.recipe)
    manifest.write(
        partial,
        manifest.Manifest(
            name=recipe.pop("architecture"),
            version=version,
            architecture=training.recipe.architecture,
            classes=cifar10.CLASSES,
            normalisation=manifest.Normalisation(mean=cifar10.MEAN, std=cifar10.STD),
            parameters=manifest.Parameters(
                file=PARAMS,
                bytes=(partial / PARAMS).stat().st_size,
                sha256=sha256(partial / PARAMS),
            ),
            training={
                **recipe,
                "data": f"CIFAR-10, {len(train.images):,} training images",
                "device": training.device.name,
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
        ),
    )
    partial.rename(target)


def _plot(progress: Progress, path: pathlib.Path) -> None:
    """Loss and accuracy by epoch as a PNG."""
    from matplotlib.figure import Figure  # the only one who needs it

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
