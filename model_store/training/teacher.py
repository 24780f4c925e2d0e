"""Teachers: networks that another network learns from, and a file that stores their logits.

A view is one augmented copy of the whole training set. A recipe may use the same views again in
later epochs. In this case, the teachers run on each view only once. Training runs with the same
views share the file, even if their seeds, lengths or architectures differ. If a run stops while it
writes the file, the logits of at most one batch are lost and are computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model_store import manifest, versions
from model_store.manifest import BadModel, Manifest
from model_store.mxnet.network import filled
from model_store.params import Arrays
from model_store.training import cifar10
from model_store.training.batches import Place
from model_store.training.recipe import SMALL_SIDE, Recipe

Logits = npt.NDArray[np.float16]
SIDES = (SMALL_SIDE, cifar10.SIDE)
"""Sides in pixels that crops can have."""
OF_IMAGES = ("batch_size", "cutout", "zoom", "color", "sharpness", "mixup", "held_out", "views")
"""Options of the recipe that determine the views."""


@dataclasses.dataclass(frozen=True)
class Version:
    """The manifest and the verified parameters of a version."""

    model: Manifest
    arrays: Arrays

    @property
    def sha256(self) -> str:
        """SHA-256 of the parameter file."""
        return self.model.parameters.sha256


def read_version(store: pathlib.Path, called: str) -> Version:
    """Read a version.

    Args:
        store: Folder of the store.
        called: `name/version`.

    Raises:
        BadModel: The version is invalid, or its classes or its normalization differ from
            CIFAR-10's.
        BadParams, OSError.
    """
    name, _, version = called.partition("/")
    folder = versions.folder(store, name, version)
    model = versions.read_manifest(folder)
    expected = manifest.Normalization(mean=cifar10.MEAN, std=cifar10.STD)
    if model.classes != cifar10.CLASSES or model.normalisation != expected:
        raise BadModel(f"{folder}: the version's classes or normalization differ from CIFAR-10's")
    return Version(
        model, versions.read_parameters(folder / model.parameters.file, model.parameters)
    )


class Memory:
    """Stores the logits for the batches of all views in a file, which is filled during training."""

    def __init__(
        self, folder: pathlib.Path, recipe: Recipe, batches: int, sources: Sequence[str]
    ) -> None:
        """
        Args:
            folder: Folder of the file, which is created if it does not exist.
            recipe: Recipe of the run. The option `views` must be at least 1.
            batches: Number of batches in a view.
            sources: Fingerprint of the images, followed by the fingerprints of the teachers.

        Raises:
            OSError: The file cannot be opened.
        """
        views = {name: getattr(recipe, name) for name in OF_IMAGES}
        key = json.dumps([views, batches, *sources]).encode()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"teacher-{hashlib.sha256(key).hexdigest()[:16]}.logits"
        path.touch()
        shape = (len(SIDES), recipe.views, batches, recipe.batch_size, len(cifar10.CLASSES))
        with path.open("r+b") as file:
            file.truncate(2 * int(np.prod(shape)))  # a new file is filled with zeros
        self._rows = np.memmap(path, dtype=np.float16, mode="r+", shape=shape)

    def get(self, place: Place) -> Logits | None:
        """Return the logits of the batch at `place`, or None if they were not computed yet."""
        rows = self._rows[SIDES.index(place.side), place.view, place.number]
        return np.array(rows) if rows.any(axis=1).all() else None

    def put(self, place: Place, logits: Logits) -> None:
        """Store the logits of the batch at `place`."""
        self._rows[SIDES.index(place.side), place.view, place.number] = logits


class Teachers:
    """Computes the mean logits of one or more networks."""

    def __init__(
        self, mx: Any, context: Any, versions: Sequence[Version], memory: Memory | None = None
    ) -> None:
        """
        Args:
            mx: The module `mxnet`, which the calling thread must have loaded.
            context: MXNet's context of the device that runs the networks.
            versions: Versions of the networks, at least one.
            memory: Stores the logits. None: logits are not stored, and teachers run on every batch.

        Raises:
            BadParams: Parameters do not fit their architecture.
        """
        self._networks = [_network(mx, context, version) for version in versions]
        self._memory = memory

    def logits(self, place: Place | None, inputs: Any) -> Logits:
        """Return the mean logits of the networks, float16 (n, classes).

        Args:
            place: Place of the batch in the views. None: the images are not used again.
            inputs: Normalized images on the device, float32 (n, 3, side, side).
        """
        if self._memory is None or place is None:
            return self._compute(inputs)
        rows = self._memory.get(place)
        if rows is None:
            rows = self._compute(inputs)
            self._memory.put(place, rows)
        return rows

    def _compute(self, inputs: Any) -> Logits:
        total = sum(network(inputs) for network in self._networks)
        mean: Logits = (total / len(self._networks)).asnumpy().astype(np.float16)
        return mean


def _network(mx: Any, context: Any, version: Version) -> Any:
    steps = filled(mx, version.model, context, version.arrays)
    try:
        while True:
            next(steps)
    except StopIteration as done:
        network = done.value
    network.hybridize(static_alloc=True, static_shape=True)
    return network
