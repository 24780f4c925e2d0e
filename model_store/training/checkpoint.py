"""Checkpoints: save a training run, so that a later process can continue it.

A checkpoint is a folder `step-<n>` that contains `state.json` and the weights that `trainer`
writes. A new checkpoint replaces the previous checkpoint only after the new checkpoint is complete.
Therefore, a crash or a power failure does not destroy the previous checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store.atomic_directory import atomic_directory
from model_store.files import read_regular
from model_store.training.recipe import Recipe

STATE = "state.json"
MAX_STATE_BYTES = 2**24


@dataclass(frozen=True)
class Origin:
    """The inputs of a run that determine the weights of the network on a CPU.

    A run can continue only from a checkpoint of the same origin.
    """

    recipe: Recipe
    data: str
    """Fingerprint of the images and labels."""
    threads: int
    """Number of CPU threads."""
    start: str = ""
    """SHA-256 of the parameters that the run starts from. Empty: random parameters."""
    teachers: tuple[str, ...] = ()
    """SHA-256 of the parameters of each teacher. A teacher is a network to learn from."""


@dataclass(frozen=True)
class Epoch:
    """Results of an epoch."""

    loss: float
    """Mean loss of the images in the epoch."""
    train_accuracy: float
    """Share of the augmented training images that were classified correctly."""
    held_out_accuracy: float | None
    """Accuracy on held-out images after the epoch. None: no images are held out."""
    learning_rate: float
    """Learning rate of the last step."""


@dataclass
class Progress:
    """Progress of a training run."""

    step: int = 0
    """Number of finished steps."""
    loss: float = 0.0
    """Sum of the losses in the current epoch."""
    right: int = 0
    """Number of augmented images in the current epoch that were classified correctly."""
    seen: int = 0
    """Number of images in the current epoch that were trained on."""
    epochs: list[Epoch] = field(default_factory=list)
    """Results of the finished epochs."""

    def count(self, losses: npt.NDArray[np.float32], right: int) -> None:
        """Record a step with the losses of its images.

        `right` is the number of images that were classified correctly.
        """
        self.step += 1
        self.loss += float(losses.sum(dtype=np.float64))
        self.right += right
        self.seen += len(losses)

    def close_epoch(self, accuracy: float | None, learning_rate: float) -> None:
        """Record the end of an epoch.

        Args:
            accuracy: Accuracy on held-out images. None: no images are held out.
            learning_rate: Learning rate of the last step.
        """
        self.epochs.append(
            Epoch(self.loss / self.seen, self.right / self.seen, accuracy, learning_rate)
        )
        self.loss, self.right, self.seen = 0.0, 0, 0


@contextmanager
def saving(folder: pathlib.Path, origin: Origin, progress: Progress) -> Iterator[pathlib.Path]:
    """Yield a folder for the weights, which is the only checkpoint in `folder` after the block."""
    target = folder / f"step-{progress.step:08d}"
    state = {**dataclasses.asdict(origin), "progress": dataclasses.asdict(progress)}
    with atomic_directory(target, within=folder) as partial:
        (partial / STATE).write_text(json.dumps(state, indent=2))
        yield partial
    # Incomplete checkpoints of killed processes are removed as well.
    for older in {*folder.glob("step-*"), *folder.glob(".*.partial")} - {target}:
        shutil.rmtree(older)


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the newest checkpoint in `folder`, or None if there is no checkpoint."""
    return max(folder.glob("step-*"), default=None)


def progress_of(saved: pathlib.Path) -> Progress:
    """Return the progress of the run at the checkpoint `saved`."""
    state = _state(saved)["progress"]
    return Progress(**{**state, "epochs": [Epoch(**epoch) for epoch in state["epochs"]]})


def check_origin(saved: pathlib.Path, origin: Origin) -> None:
    """Check that a run can continue from the checkpoint `saved`.

    Raises:
        ValueError: The checkpoint has another origin. The message says what differs.
    """
    state = _state(saved)
    wanted = json.loads(json.dumps(dataclasses.asdict(origin)))
    faults = {
        "recipe": f"with another recipe, {state.get('recipe')}: use the same options",
        "data": "from other images or labels: use the same --data",
        "threads": f"with another number of threads: use --threads {state.get('threads')}",
        "start": "from other initial parameters: use the same --start, with unchanged parameters",
        "teachers": "with other teachers: use the same --teacher, with unchanged parameters",
    }
    for what, fault in faults.items():
        if state.get(what) != wanted[what]:
            raise ValueError(f"{saved} was created {fault}, or use another --checkpoints folder")


def _state(saved: pathlib.Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(read_regular(saved / STATE, MAX_STATE_BYTES))
    return state
