"""What is served: `manifest.json` beside the parameters in `<store>/<name>/<version>/`.

The manifest is plain data. It says which network the parameters belong to, what its outputs
mean, how pixels are normalised, which bytes the parameters are, and what was measured on what.
Finding, reading and checking manifests is here; reading parameters is in `params`.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFEST = "manifest.json"
STORE = pathlib.Path(__file__).parent / "models"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
Channels = tuple[float, float, float]


class BadModel(Exception):
    """The model cannot be served; the message says which file, what is wrong, what to do."""


class Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalisation(Plain):
    """Network input = (pixel / 255 - mean) / std, per channel in the order red, green, blue."""

    mean: Channels
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ]


class Parameters(Plain):
    """The `.params` file: its name beside the manifest, its size in bytes, its SHA-256."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.params$")]
    bytes: Annotated[int, Field(gt=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Measurement(Plain):
    """`accuracy`: share of `images` whose most probable class is the label; `on` says of what."""

    on: str
    images: Annotated[int, Field(gt=0)]
    accuracy: Annotated[float, Field(ge=0, le=1)]


class Manifest(Plain):
    name: Name
    version: Version
    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    normalisation: Normalisation
    parameters: Parameters
    training: dict[str, Any] | None = None
    """The recipe, the seed and the software, as the trainer wrote them. None: not known."""
    measured: tuple[Measurement, ...] = ()

    @model_validator(mode="after")
    def _classes_differ(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        return self


def folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    return store / name / version


def versions(store: pathlib.Path) -> list[tuple[str, str]]:
    """Every (name, version) that has a manifest, by name and then by number."""
    found = [path.parent for path in store.glob(f"*/*/{MANIFEST}")]
    pairs = [(path.parent.name, path.name) for path in found if path.name.isdecimal()]
    return sorted(pairs, key=lambda pair: (pair[0], int(pair[1])))


def latest(store: pathlib.Path, name: str) -> str:
    """The highest version of `name`. Raises BadModel, listing what there is."""
    there = versions(store)
    numbers = [version for known, version in there if known == name]
    if numbers:
        return numbers[-1]
    names = ", ".join(sorted({known for known, _ in there})) or "nothing"
    raise BadModel(f"no model {name!r} in {store}; it holds {names}")


def read(folder: pathlib.Path) -> Manifest:
    """The manifest in `folder`. Raises BadModel."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BadModel(f"{path}: {where}: {first['msg']}") from error


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Write the manifest into `folder`, whole or not at all."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    partial = folder / f".{MANIFEST}.{os.getpid()}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / MANIFEST)
