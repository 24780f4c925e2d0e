"""Adds versions to the store and verifies them.

Both load a version through `load_engine`, as serving does, so a version that
passes here can be served.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from model_store import manifest, probes
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.engine import GluonEngine, load_engine
from model_store.files import read_regular
from model_store.manifest import BadModel, Manifest
from model_store.network import Rows
from model_store.params import read_params, sha256, write_params


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Class names, one a line, in the order of the network's outputs. Raises BadModel."""
    try:
        lines = read_regular(path, manifest.MAX_BYTES).decode().splitlines()
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
        await record_probes(partial)
    return manifest.folder(store, name, version)


async def record_probes(folder: pathlib.Path) -> None:
    """Load a version that is being added as it would be served in fp32, and write down in its
    manifest what the probes give."""
    async with load_engine(folder, device="cpu", max_batch_size=1, precision="fp32") as engine:
        rows = probes.record(await probabilities(engine, probes.images()))
        model = engine.model.model_copy(update={"probes": engine.model.probes | {"fp32": rows}})
    manifest.write(folder, model)


async def verify(folder: pathlib.Path) -> Manifest:
    """Load the version as it would be served on a CPU, in every precision that it has there.

    Where the manifest has no probes to compare with, they only must give finite numbers. Raises
    BadModel, BadParams, UnknownArchitecture.
    """
    model = await _verified(folder, "fp32")
    if model.int8 is not None:
        await _verified(folder, "int8")
    return model


async def _verified(folder: pathlib.Path, precision: str) -> Manifest:
    async with load_engine(folder, device="cpu", max_batch_size=1, precision=precision) as engine:
        await probabilities(engine, probes.images())
        return engine.model


async def probabilities(
    engine: GluonEngine,
    images: npt.NDArray[np.uint8],
    done: Callable[[int], object] = lambda images: None,
) -> Rows:
    """Probabilities of uint8 (n, 32, 32, 3) images: float32 (n, classes).

    `done` is called after each batch with the number of images in it.

    Raises BadModel if the output is not one finite number for each class.
    """
    size, rows = max(engine.warm_up_seconds), []
    for start in range(0, len(images), size):
        for row in await engine.infer(list(images[start : start + size])):
            if isinstance(row, Exception):
                raise BadModel(f"{engine.model.name} {engine.model.version}: {row}")
            rows.append(row)
        done(len(images[start : start + size]))
    return np.stack(rows)
