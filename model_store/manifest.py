"""Manifest: describes a version of a model, in the file `manifest.json` in the version's folder.

A manifest contains the name of the network's architecture, the classes, the normalization of
pixels, and the size and checksum of the parameter file. A manifest may also contain measured
accuracies, the ranges of tensors that int8 needs, and the network's probabilities for the probe
images. Probe images (see `probes`) show whether a loaded network computes the same results as when
the version was added. `versions` finds and adds versions in a store; `params` reads parameter
files.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model_store.files import read_regular

MANIFEST = "manifest.json"
MAX_BYTES = 2**20
"""Maximum size of a manifest in bytes."""
MAX_PARAMS_BYTES = 2**30
"""Maximum size of a `.params` or `.onnx` file in bytes."""
MAX_NUMBER = 2**63
"""Maximum absolute value of a number in `Manifest.training`."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
VERSION = r"[1-9][0-9]{0,8}"
STORE = pathlib.Path(__file__).parent / "models"
"""Folder of the default store, which is part of the project."""

Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Version = Annotated[str, Field(pattern=f"^{VERSION}$")]
Share = Annotated[float, Field(ge=0, le=1)]
PrecisionName = Literal["fp32", "int8", "fp16"]
BackendName = Literal["mxnet", "onnxruntime"]
ProbeRows = tuple[tuple[Share, ...], ...]
Bound = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
ImageCount = Annotated[int, Field(gt=0, le=10**12)]
Node = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,128}$")]


class BadModel(Exception):
    """The model cannot be served. The message says which file, what is wrong, and what to do."""


class Plain(BaseModel):
    """Base class of immutable data. Unknown fields, NaN and infinity are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normalization(Plain):
    """Normalization of pixels: the network's input is (pixel / 255 - mean) / std.

    `mean` and `std` have one number for each channel, in the order red, green, blue.
    """

    mean: tuple[Bound, Bound, Bound]
    std: tuple[Deviation, Deviation, Deviation]


class File(Plain):
    """Name, size in bytes and SHA-256 of a file in the version's folder."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    bytes: Annotated[int, Field(gt=0, le=MAX_PARAMS_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Parameters(File):
    """The parameter file, which MXNet needs."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.params$")]


class OnnxFile(File):
    """A file that contains the network in one precision for ONNX Runtime.

    The network's input is pixels, uint8 (n, 32, 32, 3), which the network normalizes itself. The
    network's output is logits, float32 (n, classes).
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+\.onnx$")]
    probes: ProbeRows = ()
    """Probabilities of each probe image, recorded when the version was added."""


class Measurement(Plain):
    """Accuracy of the model on a data set."""

    on: str
    """Name of the data set."""
    images: ImageCount
    """Number of images in the data set."""
    accuracy: Share
    """Share of the images whose most probable class is the label."""
    precision: PrecisionName = "fp32"
    backend: BackendName = "mxnet"
    negative_log_likelihood: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Mean of -log(probability of the label), in nats. None: not measured."""


class Int8(Plain):
    """The ranges of all quantized tensors, as observed on calibration images."""

    calibrated_on: str
    """Name of the data set of the calibration images."""
    images: ImageCount
    """Number of calibration images."""
    ranges: Annotated[dict[Node, tuple[Bound, Bound]], Field(min_length=1, max_length=4096)]
    """Name of a tensor -> minimum and maximum. `model_store.mxnet.int8` builds the graph of these
    tensors."""

    @field_validator("ranges")
    @classmethod
    def _ranges_are_not_empty(
        cls, ranges: dict[str, tuple[float, float]]
    ) -> dict[str, tuple[float, float]]:
        for name, (minimum, maximum) in ranges.items():
            if not minimum < maximum:
                raise ValueError(f"the range of {name} is empty: {minimum} to {maximum}")
        return ranges


class Temperature(Plain):
    """A number that divides the logits before the softmax, to calibrate the probabilities.

    Source: Guo et al. 2017, arXiv 1706.04599.
    """

    value: Annotated[float, Field(ge=0.05, le=20)]
    """The temperature. A value above 1 makes the probabilities less extreme; a value below 1 makes
    them more extreme."""
    fitted_on: str
    """Description of the images on which the temperature was fitted."""
    measured_on: str
    """Description of the separate images on which `calibration_error` and
    `calibration_error_before` were measured."""
    calibration_error: Share
    """Expected calibration error with this temperature, in 15 bins."""
    calibration_error_before: Share
    """Expected calibration error with a temperature of 1, in 15 bins."""


class Origin(Plain):
    """The version that another version was derived from.

    `sha256` is the SHA-256 of the manifest of the original version.
    """

    name: Name
    version: Version
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Identity(Plain):
    """The name of a model and the number of a version."""

    name: Name
    version: Version


class Manifest(Identity):
    """The content of `manifest.json`."""

    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    normalisation: Normalization
    """Normalization of pixels. The key keeps its British spelling, because existing manifests
    contain this key."""
    parameters: Parameters
    training: dict[str, Any] | None = None
    """The recipe, the seed and the software of the training run. None: unknown."""
    derived_from: Origin | None = None
    """The version that this version was derived from. None: trained or imported directly."""
    measured: tuple[Measurement, ...] = ()
    """Measured accuracies, in any order."""
    temperature: Temperature | None = None
    """Temperature of the probabilities. None: the temperature is 1."""
    int8: Int8 | None = None
    """Ranges for int8 with MXNet. None: MXNet cannot run the version in int8."""
    probes: dict[PrecisionName, ProbeRows] = {}
    """Precision -> probabilities of each probe image with MXNet, recorded when the version was
    added."""
    onnx: dict[PrecisionName, OnnxFile] = {}
    """Precision -> file with the network for ONNX Runtime."""

    @field_validator("training")
    @classmethod
    def _numbers_are_plausible(cls, training: dict[str, Any] | None) -> dict[str, Any] | None:
        for number in _numbers(training):
            if not (math.isfinite(number) and abs(number) <= MAX_NUMBER):
                raise ValueError(
                    "a number in `training` is not finite, or its absolute value exceeds 2**63"
                )
        return training

    @model_validator(mode="after")
    def _classes_differ(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        return self

    @model_validator(mode="after")
    def _probes_fit(self) -> Manifest:
        recorded = {f"probes.{precision}": rows for precision, rows in self.probes.items()}
        recorded |= {f"onnx.{p}.probes": one.probes for p, one in self.onnx.items() if one.probes}
        for field, rows in recorded.items():
            if not rows or any(len(row) != len(self.classes) for row in rows):
                raise ValueError(
                    f"{field} must have one row or more, with one number for each class"
                )
        return self

    @model_validator(mode="after")
    def _files_differ(self) -> Manifest:
        names = [one.file for one in self.onnx.values()]
        if len(set(names)) != len(names):
            raise ValueError("two precisions in `onnx` have the same file")
        return self

    def recorded_probes(self, precision: PrecisionName, backend: BackendName) -> ProbeRows:
        """Return the recorded probabilities of the probe images; empty if none were recorded.

        In fp32, all backends compute the same probabilities. Therefore, if no probabilities were
        recorded for a backend, the probabilities of the other backend are used.
        """
        with_onnx = {name: one.probes for name, one in self.onnx.items() if one.probes}
        own, other = self.probes, with_onnx
        if backend == "onnxruntime":
            own, other = other, own
        return own.get(precision) or (other.get("fp32", ()) if precision == "fp32" else ())

    def accuracy_in(self, precision: PrecisionName, backend: BackendName = "mxnet") -> float | None:
        """Return the accuracy in a precision with a backend, measured on the largest data set.

        Returns None if the accuracy was not measured.
        """
        measured = [
            one for one in self.measured if (one.precision, one.backend) == (precision, backend)
        ]
        return max(measured, key=lambda one: one.images).accuracy if measured else None


def read(folder: pathlib.Path) -> Manifest:
    """Return the manifest in `folder`, which need not be in a store. Raises BadModel."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise BadModel(f"{path}: {first_error(error)}") from error


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Write a manifest to `manifest.json` in `folder`.

    Raises:
        ValueError: The manifest is invalid. A manifest that was made with `model_copy` may be
            invalid, because `model_copy` does not validate.
    """
    checked = Manifest.model_validate(manifest.model_dump())
    text = json.dumps(checked.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def first_error(error: ValidationError) -> str:
    """Return the first invalid field and the reason, in one line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the manifest"
    return f"{field}: {first['msg']}"


def _numbers(value: Any) -> Iterator[float]:
    """Yield every number in nested dicts and lists."""
    remaining = [value]
    while remaining:
        match remaining.pop():
            case dict(fields):
                remaining.extend(fields.values())
            case list(items):
                remaining.extend(items)
            case int(number) | float(number):
                yield number
