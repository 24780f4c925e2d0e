"""Versions: finds, adds and reads the versions in a store.

A store is a folder of models. A version of a model is the folder `<store>/<name>/<number>/` with a
manifest and the network's parameters. The number is from 1 to 999999999 in ASCII digits, without
leading zeros. Folders with other names are not versions: they are neither listed nor served. A
version is added completely or not at all, and is never overwritten.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from model_store import manifest
from model_store.atomic_directory import AlreadyExists, atomic_directory
from model_store.files import open_regular
from model_store.manifest import (
    MANIFEST,
    NAME,
    VERSION,
    BadModel,
    File,
    Identity,
    Manifest,
    Parameters,
)
from model_store.params import Arrays, opened


def folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Return the folder of a version. The folder need not exist.

    Raises:
        BadModel: The name or the number is invalid. For example, the name `../other` is invalid,
            because it would select a folder outside the store.
    """
    try:
        Identity(name=name, version=version)
    except ValidationError as error:
        raise BadModel(manifest.first_error(error)) from error
    return store / name / version


def all_versions(store: pathlib.Path) -> list[tuple[str, str]]:
    """Return the name and number of every version, sorted by name and then by number."""
    pairs = [pair for pair in _with_manifest(store) if _is_version(*pair)]
    return sorted(pairs, key=lambda pair: (pair[0], int(pair[1])))


def ignored(store: pathlib.Path) -> list[str]:
    """Return folders that contain a manifest, but are not named like a version.

    Each result is the path of a folder, relative to the store. Hidden folders are left out, because
    they contain versions that are being added.
    """
    return sorted(
        f"{name}/{version}"
        for name, version in _with_manifest(store)
        if not (_is_version(name, version) or name.startswith(".") or version.startswith("."))
    )


def _with_manifest(store: pathlib.Path) -> Iterator[tuple[str, str]]:
    for path in store.glob(f"*/*/{MANIFEST}"):
        name, version = path.parts[-3:-1]
        yield name, version


def _is_version(name: str, version: str) -> bool:
    return bool(re.fullmatch(NAME, name) and re.fullmatch(VERSION, version))


def find(
    store: pathlib.Path, name: str | None = None, version: str | None = None
) -> list[tuple[str, str]]:
    """Return the name and number of all versions that match.

    Args:
        store: Folder of the store.
        name: Name of the model. None: all models match.
        version: Number of the version. None: all numbers match.

    Raises:
        BadModel: No version matches. The message lists all versions in the store.
    """
    existing = all_versions(store)
    matching = [pair for pair in existing if name in (None, pair[0]) and version in (None, pair[1])]
    if matching:
        return matching
    wanted = f"model {name!r}" if name else "model"
    wanted += f" of version {version!r}" if version else ""
    held = ", ".join(map(" ".join, existing)) or "nothing"
    if others := ignored(store):
        held += f"; ignored, because these names are not valid for versions: {', '.join(others)}"
    raise BadModel(f"no {wanted} in {store}; the store holds {held}")


def latest(store: pathlib.Path, name: str) -> str:
    """Return the highest version number of the model `name`.

    Raises:
        BadModel: The model has no version. The message lists all versions in the store.
    """
    return find(store, name)[-1][1]


def next_number(store: pathlib.Path, name: str) -> str:
    """Return the next version number of the model `name`; 1 if the model has no version."""
    numbers = [int(number) for known, number in all_versions(store) if known == name]
    return str(max(numbers, default=0) + 1)


def vacant_folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Return the folder that a new version will have. The folder must not exist.

    Raises:
        BadModel: The version exists, or the name or the number is invalid.
    """
    target = folder(store, name, version)
    if target.exists():
        raise _exists(target)
    return target


@contextmanager
def adding(store: pathlib.Path, name: str, version: str) -> Iterator[pathlib.Path]:
    """Yield an empty folder that becomes the version's folder if the block succeeds.

    If the block raises, the folder is removed.

    Raises:
        BadModel: The version exists, or the name or the number is invalid. This error is also
            raised after the block, if another process has added the version in the meantime.
    """
    target = vacant_folder(store, name, version)
    try:
        with atomic_directory(target, within=store) as partial:
            yield partial
    except AlreadyExists as error:
        raise _exists(target) from error


def _exists(target: pathlib.Path) -> BadModel:
    return BadModel(
        f"{target} exists; versions are never overwritten: choose a new number with --version"
    )


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Return the manifest of a version.

    Raises:
        BadModel: The manifest is invalid, or contains another name or number than `folder`.
    """
    model = manifest.read(folder)
    name, version = folder.absolute().parts[-2:]
    if (model.name, model.version) != (name, version):
        raise BadModel(
            f"{folder / MANIFEST} describes {model.name} {model.version} but is in the folder of "
            f"{name} {version}: rename the folder, or correct the manifest"
        )
    return model


def read_parameters(path: pathlib.Path, described: Parameters) -> Arrays:
    """Return the arrays in the parameter file `path`.

    Args:
        path: Path of the file.
        described: Size and checksum of the file, as the manifest describes it.

    Raises:
        BadModel: The size or the checksum differs.
        BadParams: The file is not a valid parameter file.
    """
    with opened(path) as source:
        # The size is checked first, so that a file of another size is not read.
        if source.size != described.bytes:
            raise _differs(
                path, f"the file has {source.size:,} bytes instead of {described.bytes:,}"
            )
        arrays = source.arrays()
        if source.sha256() != described.sha256:
            raise _differs(path, "its SHA-256 differs")
    return arrays


def read_file(path: pathlib.Path, described: File) -> bytes:
    """Return the content of a file of a version.

    Args:
        path: Path of the file.
        described: Size and checksum of the file, as the manifest describes it.

    Raises:
        BadModel: The file cannot be read, or its size or checksum differs.
    """
    try:
        with open_regular(path) as file:
            # The size is checked first, so that a file of another size is not read.
            size = os.fstat(file.fileno()).st_size
            if size != described.bytes:
                raise _differs(path, f"the file has {size:,} bytes instead of {described.bytes:,}")
            content = file.read(described.bytes + 1)
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != described.sha256:
        raise _differs(path, "its SHA-256 differs")
    return content


def _differs(path: pathlib.Path, reason: str) -> BadModel:
    return BadModel(
        f"{path} is not the file that {MANIFEST} describes: {reason}. "
        "Restore the file, or import it as a new version"
    )
