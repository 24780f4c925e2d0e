"""Looking after the store: bring in a network, verify what is there, measure it.

Each of these goes the way that serving goes, through `load_engine`, so that what passes here is
what will be served.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model_store import cifar10, manifest
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.engine import SIDE, load_engine
from model_store.manifest import BadModel, Manifest
from model_store.params import read_params, sha256, write_params


@dataclass(frozen=True)
class Accuracy:
    """`by_class`: class -> share of its images that were recognised; `overall`: of all."""

    images: int
    overall: float
    by_class: dict[str, float]


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the network's outputs. Raises BadModel."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as a list of classes: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


async def import_params(
    source: pathlib.Path,
    store: pathlib.Path,
    name: str,
    version: str,
    architecture: str,
    classes: tuple[str, ...],
    normalisation: manifest.Normalisation,
) -> pathlib.Path:
    """Add a network that was trained elsewhere; returns the new version's folder.

    The file is read, checked against the architecture, loaded and run before the version appears;
    it appears whole or not at all. Raises BadModel, BadParams, UnknownArchitecture, ValueError,
    OSError.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownArchitecture(architecture)
    arrays = read_params(source)
    with manifest.adding(store, name, version) as partial:
        path = partial / "net.params"
        write_params(path, arrays)
        manifest.write(
            partial,
            Manifest(
                name=name,
                version=version,
                architecture=architecture,
                classes=classes,
                normalisation=normalisation,
                parameters=manifest.Parameters(
                    file=path.name, bytes=path.stat().st_size, sha256=sha256(path)
                ),
            ),
        )
        await verify(partial)
    return manifest.folder(store, name, version)


async def verify(folder: pathlib.Path) -> Manifest:
    """Load the version as it would be served and run one image.

    Raises BadModel, BadParams, UnknownArchitecture.
    """
    async with load_engine(folder, device="cpu", max_batch_size=1) as engine:
        (row,) = await engine.infer([np.zeros((SIDE, SIDE, 3), dtype=np.uint8)])
        if isinstance(row, Exception):
            raise BadModel(f"{folder}: the network computes nonsense: {row}")
        return engine.model


async def evaluate(
    folder: pathlib.Path,
    test: cifar10.Split,
    device: str,
    threads: int,
    done: Callable[[int], object] = lambda images: None,
) -> Accuracy:
    """Accuracy on labelled images, as served; `done` is told how many more are classified.

    Raises BadModel where the classes are not CIFAR's.
    """
    async with load_engine(folder, device, threads, max_batch_size=64) as engine:
        if engine.model.classes != cifar10.CLASSES:
            raise BadModel(f"{folder}: its classes are not those of CIFAR-10")
        best: list[int] = []
        for start in range(0, len(test.images), 64):
            rows = await engine.infer(list(test.images[start : start + 64]))
            done(len(rows))
            best += [-1 if isinstance(row, Exception) else int(row.argmax()) for row in rows]
    hits = np.asarray(best) == test.labels
    shares = [float(hits[test.labels == label].mean()) for label in range(len(cifar10.CLASSES))]
    by_class = dict(zip(cifar10.CLASSES, shares, strict=True))
    return Accuracy(len(hits), float(hits.mean()), by_class)
