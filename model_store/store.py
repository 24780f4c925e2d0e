"""Store: imports versions into a store and verifies them.

Both load the version with `load_engine`, as the server does, so a version that passes can be
served.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from model_store import manifest, probes, versions
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.batch import Rows
from model_store.engine import GluonEngine, load_engine
from model_store.files import read_regular
from model_store.manifest import BadModel, Manifest
from model_store.params import read_params, sha256, write_params


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Class names, one per line, in the order of the network's outputs. Raises BadModel."""
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
    normalization: manifest.Normalization,
) -> pathlib.Path:
    """Add a network that was trained elsewhere; returns the new version's folder.

    The version is loaded and its probes are recorded before it appears in the store.

    Args:
        source: The `.params` file.
        store: Folder of the store.
        name: Name of the model.
        version: Number of the version.
        architecture: The network that the parameters belong to.
        classes: Class names in the order of the network's outputs.
        normalization: Of the pixels, as in training.

    Raises:
        BadModel, BadParams, UnknownArchitecture, ValueError, OSError.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownArchitecture(architecture)
    arrays = read_params(source)
    with versions.adding(store, name, version) as partial:
        path = partial / "net.params"
        write_params(path, arrays)
        manifest.write(
            partial,
            Manifest(
                name=name,
                version=version,
                architecture=architecture,
                classes=classes,
                normalisation=normalization,
                parameters=manifest.Parameters(
                    file=path.name, bytes=path.stat().st_size, sha256=sha256(path)
                ),
            ),
        )
        await record_probes(partial)
    return versions.folder(store, name, version)


async def record_probes(folder: pathlib.Path) -> None:
    """Load a version that is being added in fp32, and write its probabilities of the probe images
    into its manifest."""
    async with load_engine(folder, device="cpu", max_batch_size=1, precision="fp32") as engine:
        rows = probes.record(await probabilities(engine, probes.images()))
        model = engine.model.model_copy(update={"probes": engine.model.probes | {"fp32": rows}})
    manifest.write(folder, model)


async def verify(folder: pathlib.Path) -> Manifest:
    """Load the version on a CPU in fp32, and in int8 if it is calibrated; returns its manifest.

    Loading compares the probabilities of the probe images with those in the manifest. If there are
    none, they must be finite. Raises BadModel, BadParams, UnknownArchitecture.
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
    """Probabilities of images, float32 (n, classes).

    Args:
        engine: Computes in batches of its largest size.
        images: uint8 (n, 32, 32, 3).
        done: Called after each batch with the number of images in it.

    Raises:
        BadModel: An output is not one finite number for each class.
    """
    size, rows = max(engine.warm_up_seconds), []
    for start in range(0, len(images), size):
        for row in await engine.infer(list(images[start : start + size])):
            if isinstance(row, Exception):
                raise BadModel(f"{engine.model.name} {engine.model.version}: {row}")
            rows.append(row)
        done(len(images[start : start + size]))
    return np.stack(rows)
