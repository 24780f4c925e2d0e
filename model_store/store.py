"""Store: imports versions into a store, which is a folder of models, and verifies versions.

Both operations load the version with `load_engine`, as the server does. Therefore, a version that
was imported or verified without an error can be served.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from model_store import backends, manifest, probes, versions
from model_store.architectures import ARCHITECTURES, UnknownArchitecture
from model_store.batch import Image, Rows
from model_store.engine import LaneEngine, load_engine
from model_store.files import read_regular
from model_store.manifest import BackendName, BadModel, Manifest
from model_store.onnx import files
from model_store.params import Arrays, read_params, sha256, write_params
from model_store.precision import is_offered


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """Read a file of class names, one per line, in the order of the network's outputs.

    Raises:
        BadModel: The file cannot be read.
    """
    try:
        lines = read_regular(path, manifest.MAX_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadModel(f"{path}: cannot be read as a list of class names: {error}") from error
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
    """Add a network that was trained elsewhere, and return the new version's folder.

    Before the version appears in the store, the version is loaded, and the network's probabilities
    for the probe images (see `probes`) are recorded in the manifest.

    Args:
        source: The `.params` file.
        store: Folder of the store.
        name: Name of the model.
        version: Number of the version.
        architecture: Name of the architecture that the parameters belong to.
        classes: Class names in the order of the network's outputs.
        normalization: Normalization of pixels that was used in training.

    Raises:
        BadModel, BadParams, UnknownArchitecture, ValueError, OSError.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownArchitecture(architecture)
    arrays = read_params(source)
    with versions.adding(store, name, version) as partial:
        path = partial / "net.params"
        write_params(path, arrays)
        model = Manifest(
            name=name,
            version=version,
            architecture=architecture,
            classes=classes,
            normalisation=normalization,
            parameters=manifest.Parameters(
                file=path.name, bytes=path.stat().st_size, sha256=sha256(path)
            ),
        )
        manifest.write(partial, with_onnx(model, partial, arrays))
        await record_probes(partial)
        await verify(partial)
    return versions.folder(store, name, version)


def with_onnx(
    model: Manifest, folder: pathlib.Path, arrays: Arrays, calibration: Image | None = None
) -> Manifest:
    """Write a version's ONNX files, and return the manifest with descriptions of the files.

    Arguments and errors are as in `onnx.files.write`. If the packages for writing ONNX files are
    not installed, no file is written.
    """
    if not files.can_write():
        return model
    return model.model_copy(update={"onnx": files.write(folder, model, arrays, calibration)})


async def record_probes(folder: pathlib.Path) -> None:
    """Record MXNet's probabilities of the probe images in the manifest of a version.

    The version is loaded in fp32 on the CPU. If MXNet is not installed, the manifest does not
    change.
    """
    if "mxnet" not in backends.installed():
        return
    async with load_engine(folder, "cpu", 1, 1, "fp32", backend="mxnet") as engine:
        rows = probes.record(await probabilities(engine, probes.images()))
        model = engine.model.model_copy(update={"probes": engine.model.probes | {"fp32": rows}})
    manifest.write(folder, model)


async def verify(folder: pathlib.Path) -> list[BackendName]:
    """Load a version on the CPU with every installed backend, and return these backends.

    The version is loaded in fp32, and also in int8 if it is calibrated. Loading compares the
    probabilities of the probe images with the probabilities in the manifest. If the manifest has no
    such probabilities, the computed probabilities must be finite. All ONNX files are checked, even
    if ONNX Runtime is not installed.

    Raises:
        BadModel, BadParams, UnknownArchitecture.
        BackendUnavailable: No installed backend can run the version.
    """
    model = versions.read_manifest(folder)
    for described in model.onnx.values():
        files.read(folder, described)
    names = backends.able(model)
    for name in names:
        for precision in ("fp32", "int8"):
            if is_offered(precision, model, name):
                async with load_engine(folder, "cpu", 1, 1, precision, backend=name) as engine:
                    await probabilities(engine, probes.images())
    return names


async def probabilities(
    engine: LaneEngine,
    images: npt.NDArray[np.uint8],
    done: Callable[[int], object] = lambda images: None,
) -> Rows:
    """Compute the probabilities of images, float32 (n, classes).

    Args:
        engine: Runs the network on the images, in batches of the engine's maximum size.
        images: uint8 (n, 32, 32, 3).
        done: Function that is called after each batch with the number of images in the batch. The
            default does nothing.

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
