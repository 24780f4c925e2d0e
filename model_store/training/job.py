"""Job: trains a network on CIFAR-10 and adds a version (`python -m model_store train`).

On a CPU, runs with the same options and the same number of threads give the same weights. After
Ctrl-C, the same command continues the run and gives the same weights as an uninterrupted run.

The result is an average of the weights over the steps. The weights of a single step are never the
result, even if their accuracy is higher. If training images are held out, the accuracy on these
images is measured after every epoch. Otherwise, the accuracy on the test images is measured once,
after training.
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

from tqdm import tqdm

from model_store import manifest, probes, versions
from model_store.params import read_params, sha256
from model_store.store import with_onnx
from model_store.training import checkpoint, cifar10
from model_store.training.batches import Batches
from model_store.training.checkpoint import Origin
from model_store.training.plots import draw_progress
from model_store.training.recipe import Recipe
from model_store.training.teacher import Memory, read_version
from model_store.training.trainer import Trainer

PARAMS = "net.params"
SAVE_SECONDS = 600.0
"""Maximum number of seconds between two checkpoints."""


class Interrupted(Exception):
    """The run was stopped by Ctrl-C or SIGTERM and saved. The same command continues the run."""


def train(
    recipe: Recipe,
    data: pathlib.Path,
    checkpoints: pathlib.Path,
    store: pathlib.Path,
    version: str,
    device: str,
    threads: int,
    logits: pathlib.Path | None = None,
) -> pathlib.Path:
    """Start or continue a run, and return the new version's folder in `store`.

    Args:
        recipe: Options of the run.
        data: Folder of CIFAR-10's binary version.
        checkpoints: Folder of checkpoints, which are saved after every epoch and every ten minutes.
            If the folder contains checkpoints, the run continues from the newest checkpoint.
        store: Folder of the store. The new version is added to the store. The teachers and the
            version in `recipe.start` are read from the store.
        version: Number of the new version.
        device: auto, cpu, gpu or gpu:N.
        threads: Number of CPU threads.
        logits: Folder that stores the logits of teachers. None: `checkpoints`.

    Raises:
        BadModel: The new version exists, or another version is invalid.
        ValueError: The newest checkpoint has another origin, or an option is invalid.
        Interrupted: The run was stopped by Ctrl-C or SIGTERM.
        BadDataset, BadParams, DeviceUnavailable, BackendUnavailable, OSError.
    """
    # All inputs are checked before the training, which takes hours.
    target = versions.vacant_folder(store, recipe.architecture, version)
    whole, test = cifar10.read_train(data), cifar10.read_test(data)
    train_split, held_out = cifar10.held_out(whole, recipe.held_out)
    batches = Batches(recipe, train_split)
    start = read_version(store, recipe.start) if recipe.start else None
    teachers = [read_version(store, name) for name in recipe.teachers]
    origin = Origin(
        recipe,
        cifar10.fingerprint(whole, test),
        threads,
        start.sha256 if start else "",
        tuple(teacher.sha256 for teacher in teachers),
    )
    saved = checkpoint.newest(checkpoints)
    if saved is not None:
        checkpoint.check_origin(saved, origin)
    memory = None
    if teachers and recipe.views:
        sources = (origin.data, *origin.teachers)
        memory = Memory(logits or checkpoints, recipe, batches.per_epoch, sources)
    arrays = start.arrays if start else None
    training = Trainer(origin, device, batches, arrays, teachers, memory)
    if saved is not None:
        training.load(saved)
        print(f"continuing from step {training.progress.step} of {training.steps}", flush=True)
    print(f"training on {training.device.name} ({training.device.reason})", flush=True)
    _run(training, held_out, checkpoints)
    measured = held_out if recipe.held_out else test
    _add_version(training, len(train_split.images), measured, store, version)
    return target


def _run(
    training: Trainer,
    held_out: cifar10.Split,
    checkpoints: pathlib.Path,
    save_seconds: float = SAVE_SECONDS,
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
    saved = time.monotonic()
    with bar, _stop_requests() as stop:
        for progress in training.run(held_out):
            bar.update(size)
            closed, stopped = progress.step % training.batches.per_epoch == 0, bool(stop)
            if closed or stopped or time.monotonic() - saved >= save_seconds:
                training.save(checkpoints)
                saved = time.monotonic()
            if closed:
                draw_progress(progress, checkpoints / "training.png")
                last = progress.epochs[-1]
                accuracy = last.held_out_accuracy
                bar.write(
                    f"epoch {len(progress.epochs)}/{training.recipe.epochs}: "
                    f"loss {last.loss:.3f}, train {last.train_accuracy:.2%}"
                    + (f", held out {accuracy:.2%}" if accuracy is not None else "")
                )
            if stopped:
                raise Interrupted(
                    f"stopped at step {progress.step} of {training.steps}, saved in {checkpoints}; "
                    "run the same command to continue"
                )


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Yield a list to which the number of each SIGINT or SIGTERM is appended.

    The signals do not interrupt a step: the caller reads the list after each step.
    """
    received: list[int] = []

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _add_version(
    training: Trainer,
    images: int,
    measured: cifar10.Split,
    store: pathlib.Path,
    version: str,
) -> None:
    """Add the averaged network to the store as a new version."""
    with versions.adding(store, training.recipe.architecture, version) as partial:
        training.save_average(partial / PARAMS)
        draw_progress(training.progress, partial / "training.png")
        model = _describe(training, images, measured, version, partial / PARAMS)
        manifest.write(partial, with_onnx(model, partial, read_params(partial / PARAMS)))


def _describe(
    training: Trainer,
    images: int,
    measured: cifar10.Split,
    version: str,
    params: pathlib.Path,
) -> manifest.Manifest:
    recipe = dataclasses.asdict(training.recipe)
    of = "training images held out" if training.recipe.held_out else "images of test_batch.bin"
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
            "data": f"CIFAR-10, {images:,} training images",
            "device": training.device.name,
            "threads": training.origin.threads,
            "mxnet": training.mxnet_version,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "final_loss": round(training.progress.epochs[-1].loss, 4),
        },
        measured=(
            manifest.Measurement(
                on=f"CIFAR-10, the {len(measured.images):,} {of}, fp32",
                images=len(measured.images),
                accuracy=training.accuracy(measured),
            ),
        ),
        probes={"fp32": probes.record(training.probabilities(probes.images()))},
    )
