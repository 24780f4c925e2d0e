"""Checkpoints: everything that a later process needs to continue a training run.

A checkpoint is a folder `step-<n>` with the weights that `trainer` writes, and `state.json`. A
crash or a power cut at any time leaves a complete checkpoint, if there was one before.
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
    """Everything that decides the weights on a CPU. A run continues only from a checkpoint of the
    same origin."""

    recipe: Recipe
    data: str
    """Fingerprint of the images and labels."""
    threads: int
    start: str = ""
    """SHA-256 of the parameters that the run starts from; empty if it starts from random ones."""
    teachers: tuple[str, ...] = ()
    """SHA-256 of the parameters of each teacher."""


@dataclass(frozen=True)
class Epoch:
    """Means over an epoch, and what was measured at its end."""

    loss: float
    train_accuracy: float
    held_out_accuracy: float | None
    """None if no images are held out."""
    learning_rate: float


@dataclass
class Progress:
    """Progress of a run: finished steps, sums of the current epoch, and finished epochs."""

    step: int = 0
    loss: float = 0.0
    right: int = 0
    """Images of the current epoch that were classified correctly, after augmentation."""
    seen: int = 0
    """Images of the current epoch that were trained on."""
    epochs: list[Epoch] = field(default_factory=list)

    def count(self, losses: npt.NDArray[np.float32], right: int) -> None:
        self.step += 1
        self.loss += float(losses.sum(dtype=np.float64))
        self.right += right
        self.seen += len(losses)

    def close_epoch(self, accuracy: float | None, learning_rate: float) -> None:
        """Record the means of an epoch. `accuracy` is that on held-out images, if there are any."""
        self.epochs.append(
            Epoch(self.loss / self.seen, self.right / self.seen, accuracy, learning_rate)
        )
        self.loss, self.right, self.seen = 0.0, 0, 0


@contextmanager
def saving(folder: pathlib.Path, origin: Origin, progress: Progress) -> Iterator[pathlib.Path]:
    """Yield a folder for the weights. It becomes the only checkpoint in `folder`."""
    target = folder / f"step-{progress.step:08d}"
    state = {**dataclasses.asdict(origin), "progress": dataclasses.asdict(progress)}
    with atomic_directory(target, within=folder) as partial:
        (partial / STATE).write_text(json.dumps(state, indent=2))
        yield partial
    # Also incomplete checkpoints of killed processes.
    for older in {*folder.glob("step-*"), *folder.glob(".*.partial")} - {target}:
        shutil.rmtree(older)


def newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The newest checkpoint in `folder`, if any."""
    return max(folder.glob("step-*"), default=None)


def progress_of(saved: pathlib.Path) -> Progress:
    state = _state(saved)["progress"]
    return Progress(**{**state, "epochs": [Epoch(**epoch) for epoch in state["epochs"]]})


def check_origin(saved: pathlib.Path, origin: Origin) -> None:
    """Raises ValueError if the checkpoint has another origin; the message says what differs."""
    state = _state(saved)
    wanted = json.loads(json.dumps(dataclasses.asdict(origin)))
    faults = {
        "recipe": f"by another recipe, {state.get('recipe')}: use the same options",
        "data": "from other images or labels: name the same --data",
        "threads": f"with another number of threads: use --threads {state.get('threads')}",
        "start": "from another network: restore the version that --start names",
        "teachers": "with other teachers: restore the versions that --teacher names",
    }
    for what, fault in faults.items():
        if state.get(what) != wanted[what]:
            raise ValueError(f"{saved} was made {fault}, or name another --checkpoints folder")


def _state(saved: pathlib.Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(read_regular(saved / STATE, MAX_STATE_BYTES))
    return state
