"""Versions: finds, adds and reads the versions in a store.

A version is a folder `<store>/<name>/<number>/` with a manifest and its parameters. The number is
from 1 to 999999999 in ASCII digits, without leading zeros. Folders with other names are not
versions: they are neither listed nor served. A version is added completely or not at all, and is
never overwritten.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from model_store import manifest
from model_store.atomic_directory import AlreadyExists, atomic_directory
from model_store.manifest import MANIFEST, NAME, VERSION, BadModel, Identity, Manifest, Parameters
from model_store.params import Arrays, opened


def folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """The folder of a version, which need not exist.

    Raises BadModel if no version can have this name and number. So a name with a slash cannot lead
    out of the store.
    """
    try:
        Identity(name=name, version=version)
    except ValidationError as error:
        raise BadModel(manifest.first_error(error)) from error
    return store / name / version


def all_versions(store: pathlib.Path) -> list[tuple[str, str]]:
    """Name and number of every version, by name and then by number."""
    pairs = [pair for pair in _with_manifest(store) if _is_version(*pair)]
    return sorted(pairs, key=lambda pair: (pair[0], int(pair[1])))


def ignored(store: pathlib.Path) -> list[str]:
    """`name/number` of every folder with a manifest that is not a version because of its name.

    Hidden folders are left out: versions that are being added are in hidden folders.
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
    """Name and number of the versions with this name and number; None matches any.

    Raises BadModel, with a list of all versions, if there is none.
    """
    existing = all_versions(store)
    matching = [pair for pair in existing if name in (None, pair[0]) and version in (None, pair[1])]
    if matching:
        return matching
    wanted = f"model {name!r}" if name else "model"
    wanted += f" of version {version!r}" if version else ""
    held = ", ".join(map(" ".join, existing)) or "nothing"
    if others := ignored(store):
        held += f"; not versions because of their names: {', '.join(others)}"
    raise BadModel(f"no {wanted} in {store}; it holds {held}")


def latest(store: pathlib.Path, name: str) -> str:
    """The highest number of `name`. Raises BadModel, with a list of all versions."""
    return find(store, name)[-1][1]


def next_number(store: pathlib.Path, name: str) -> str:
    """The number after the highest of `name`; 1 if there is none."""
    numbers = [int(number) for known, number in all_versions(store) if known == name]
    return str(max(numbers, default=0) + 1)


def vacant_folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """The folder of a version that can be added. Raises BadModel if it exists, and as `folder`."""
    target = folder(store, name, version)
    if target.exists():
        raise _exists(target)
    return target


@contextmanager
def adding(store: pathlib.Path, name: str, version: str) -> Iterator[pathlib.Path]:
    """An empty folder that becomes the version if the block succeeds, and is removed otherwise.

    Raises BadModel as `vacant_folder`, also if another process has added the version meanwhile.
    """
    target = vacant_folder(store, name, version)
    try:
        with atomic_directory(target, within=store) as partial:
            yield partial
    except AlreadyExists as error:
        raise _exists(target) from error


def _exists(target: pathlib.Path) -> BadModel:
    return BadModel(f"{target} exists; versions are never overwritten: choose another --version")


def read(folder: pathlib.Path) -> tuple[Manifest, Arrays]:
    """The manifest and the verified parameters of a version. Raises BadModel, BadParams."""
    model = read_manifest(folder)
    return model, read_parameters(folder / model.parameters.file, model.parameters)


def read_manifest(folder: pathlib.Path) -> Manifest:
    """The manifest of a version. Raises BadModel, also if it names another version."""
    model = manifest.read(folder)
    name, version = folder.absolute().parts[-2:]
    if (model.name, model.version) != (name, version):
        raise BadModel(
            f"{folder / MANIFEST} describes {model.name} {model.version} and lies in the folder of "
            f"{name} {version}: rename the folder, or correct the manifest"
        )
    return model


def read_parameters(path: pathlib.Path, described: Parameters) -> Arrays:
    """The arrays in `path`, a file that a manifest describes.

    Raises BadModel if its size or checksum differs, BadParams.
    """
    with opened(path) as source:
        # First, so that nothing of a file with another size is read.
        if source.size != described.bytes:
            raise _differs(path, f"it has {source.size:,} bytes instead of {described.bytes:,}")
        arrays = source.arrays()
        if source.sha256() != described.sha256:
            raise _differs(path, "its SHA-256 differs")
    return arrays


def _differs(path: pathlib.Path, reason: str) -> BadModel:
    return BadModel(
        f"{path} is not the file that {MANIFEST} describes: {reason}. "
        "Restore the file, or import it as a new version"
    )
