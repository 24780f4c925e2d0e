"""What is served: `manifest.json` beside the parameters in `<store>/<name>/<version>/`.

The manifest is plain data. It says which network the parameters belong to, what its outputs
mean, how pixels are normalised, which bytes the parameters are, how they may be computed with
fewer bits, what was measured on what, and what some images gave when the version was added.
Finding, reading, checking and adding versions is here; reading parameters is in `params`.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model_store.files import read_regular
from model_store.folders import AlreadyThere, appearing

MANIFEST = "manifest.json"
MAX_BYTES = 2**20
"""Maximum size of a manifest."""
MAX_PARAMS_BYTES = 2**30
"""Maximum size of a file of parameters."""
MAX_NUMBER = 2**63
"""Maximum magnitude of a number in `training`, which has no other rule."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
VERSION = r"[1-9][0-9]{0,8}"
STORE = pathlib.Path(__file__).parent / "models"

Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Version = Annotated[str, Field(pattern=f"^{VERSION}$")]
Share = Annotated[float, Field(ge=0, le=1)]
PrecisionName = Literal["fp32", "int8", "fp16"]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
ImageCount = Annotated[int, Field(gt=0, le=10**12)]
Node = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,128}$")]


class BadModel(Exception):
    """The model cannot be served; the message says which file, what is wrong, what to do."""


class Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normalisation(Plain):
    """Network input = (pixel / 255 - mean) / std, per channel in the order red, green, blue."""

    mean: tuple[Bound, Bound, Bound]
    std: tuple[Deviation, Deviation, Deviation]


class Parameters(Plain):
    """The `.params` file: its name beside the manifest, its size in bytes, its SHA-256."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.params$")]
    bytes: Annotated[int, Field(gt=0, le=MAX_PARAMS_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Measurement(Plain):
    """`accuracy`: share of `images` whose most probable class is the label; `on` says of what."""

    on: str
    images: ImageCount
    accuracy: Share
    precision: PrecisionName = "fp32"
    negative_log_likelihood: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Mean of -log(probability of the label), in nats."""


class Int8(Plain):
    """What 8 bits stand for: the range of every tensor that is quantised, as seen on images."""

    calibrated_on: str
    images: ImageCount
    ranges: Annotated[dict[Node, tuple[Bound, Bound]], Field(min_length=1, max_length=4096)]
    """Output of the network's graph -> its least and greatest value. `int8` knows the names."""

    @field_validator("ranges")
    @classmethod
    def _wide(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (least, greatest) in ranges.items():
            if not least < greatest:
                raise ValueError(f"the range of {name} is empty: {least} to {greatest}")
        return ranges


class Temperature(Plain):
    """What the logits are divided by before the softmax, which makes it less sure or surer.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """

    value: Annotated[float, Field(ge=0.05, le=20)]
    fitted_on: str
    measured_on: str
    """Images that it was not fitted on, of which the two errors are."""
    calibration_error: Share
    """Expected calibration error, 15 bins."""
    calibration_error_before: Share
    """The same with a temperature of 1."""


class Origin(Plain):
    """The version that this one was derived from, and the SHA-256 of its manifest."""

    name: Name
    version: Version
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Identity(Plain):
    """Which version of which model."""

    name: Name
    version: Version


class Manifest(Identity):
    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    normalisation: Normalisation
    parameters: Parameters
    training: dict[str, Any] | None = None
    """The recipe, the seed and the software, as the trainer wrote them. None: not known."""
    derived_from: Origin | None = None
    measured: tuple[Measurement, ...] = ()
    temperature: Temperature | None = None
    """None: the logits are taken as they are."""
    int8: Int8 | None = None
    """None: not served in int8."""
    probes: dict[PrecisionName, tuple[tuple[Share, ...], ...]] = {}
    """Precision -> the probabilities that it gave for each image of `probes`, when added."""

    @field_validator("training")
    @classmethod
    def _plausible(cls, training: dict[str, Any] | None) -> dict[str, Any] | None:
        for number in _numbers(training):
            if not (math.isfinite(number) and abs(number) <= MAX_NUMBER):
                raise ValueError("a number in it is not finite, or is larger than 2 to the 63rd")
        return training

    @model_validator(mode="after")
    def _classes_differ(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        return self

    @model_validator(mode="after")
    def _probes_fit(self) -> Manifest:
        for precision, rows in self.probes.items():
            if not rows or any(len(row) != len(self.classes) for row in rows):
                raise ValueError(f"the probes of {precision} are not one number a class")
        return self

    def accuracy_in(self, precision: PrecisionName) -> float | None:
        """As measured, on most images where it was on several sets; None: it was not."""
        found = [one for one in self.measured if one.precision == precision]
        return max(found, key=lambda one: one.images).accuracy if found else None


def folder(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Where the version lies or would lie. Raises BadModel: no model can have that name or number.

    A name with a slash in it would lead out of the store.
    """
    try:
        Identity(name=name, version=version)
    except ValidationError as error:
        raise BadModel(told(error)) from error
    return store / name / version


def versions(store: pathlib.Path) -> list[tuple[str, str]]:
    """Every (name, version) that has a manifest, by name and then by number.

    A version is a folder whose name is a number from 1 to 999999999 without leading zeros, in ASCII
    digits. Other folders are no versions: they are neither listed nor served.
    """
    pairs = [pair for pair in _with_manifest(store) if _is_version(*pair)]
    return sorted(pairs, key=lambda pair: (pair[0], int(pair[1])))


def ignored(store: pathlib.Path) -> list[str]:
    """`name/version` of every folder with a manifest that is no version, for its name or number.
    Hidden ones are not among them: they are not meant to be versions."""
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
    """Those of `versions` that have this name and number; None stands for any.

    Raises BadModel, listing what there is, where there is none.
    """
    there = versions(store)
    found = [pair for pair in there if name in (None, pair[0]) and version in (None, pair[1])]
    if found:
        return found
    wanted = f"model {name!r}" if name else "model"
    wanted += f" of version {version!r}" if version else ""
    held = ", ".join(map(" ".join, there)) or "nothing"
    if others := ignored(store):
        held += f"; not versions by their names: {', '.join(others)}"
    raise BadModel(f"no {wanted} in {store}; it holds {held}")


def latest(store: pathlib.Path, name: str) -> str:
    """The highest version of `name`. Raises BadModel, listing what there is."""
    return find(store, name)[-1][1]


def following(store: pathlib.Path, name: str) -> str:
    """The number after the highest of `name`; 1 if there is none."""
    numbers = [int(version) for known, version in versions(store) if known == name]
    return str(max(numbers, default=0) + 1)


def vacant(store: pathlib.Path, name: str, version: str) -> pathlib.Path:
    """Where the version would lie. Raises BadModel: it is there, or it cannot be, as `folder`."""
    target = folder(store, name, version)
    if target.exists():
        raise _exists(target)
    return target


@contextmanager
def adding(store: pathlib.Path, name: str, version: str) -> Iterator[pathlib.Path]:
    """An empty folder that becomes the version where the block succeeds, and else is gone.

    Raises BadModel as `vacant`, also where another process added the version meanwhile.
    """
    target = vacant(store, name, version)
    try:
        with appearing(target, within=store) as partial:
            yield partial
    except AlreadyThere as error:
        raise _exists(target) from error


def read(folder: pathlib.Path) -> Manifest:
    """The manifest in `folder`, wherever that is. Raises BadModel."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadModel(f"{path}: {told(error)}") from error


def read_version(folder: pathlib.Path) -> Manifest:
    """The manifest of a version in a store, which lies under its own name and number.

    Raises BadModel.
    """
    model = read(folder)
    name, version = folder.absolute().parts[-2:]
    if (model.name, model.version) != (name, version):
        raise BadModel(
            f"{folder / MANIFEST} is of {model.name} {model.version} and lies where {name} "
            f"{version} belongs: rename the folder, or mend the manifest"
        )
    return model


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Raises ValueError where the manifest could not be read back: `model_copy` checks nothing."""
    checked = Manifest.model_validate(manifest.model_dump())
    text = json.dumps(checked.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def told(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole"
    return f"{where}: {first['msg']}"


def _numbers(value: Any) -> Iterator[float]:
    """Every number in plain data, however deep."""
    rest = [value]
    while rest:
        match rest.pop():
            case dict(fields):
                rest.extend(fields.values())
            case list(items):
                rest.extend(items)
            case int(number) | float(number):
                yield number


def _exists(target: pathlib.Path) -> BadModel:
    return BadModel(f"{target} exists; versions are never overwritten: choose another --version")
