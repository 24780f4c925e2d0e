"""The manifest: what is accepted, and what the error says otherwise."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from model_store import manifest
from model_store.manifest import BadModel
from model_store.params import sha256

GOOD: dict[str, Any] = {
    "name": "pets",
    "version": "3",
    "architecture": "cifar_resnet20_v1",
    "classes": ["cat", "dog"],
    "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "parameters": {"file": "net.params", "bytes": 10, "sha256": "0" * 64},
}

INT8 = {"calibrated_on": "squares", "images": 9, "ranges": {"layer": [-1, 1]}}
TEMPERATURE = {
    "value": 1.5,
    "fitted_on": "squares",
    "measured_on": "others",
    "calibration_error": 0.01,
    "calibration_error_before": 0.03,
}


FULL: dict[str, Any] = GOOD | {
    "training": {"seed": 1, "rate": 0.1, "steps": [{"rate": 0.2}]},
    "derived_from": {"name": "pets", "version": "2", "sha256": "0" * 64},
    "measured": [
        {"on": "squares", "images": 9, "accuracy": 0.5, "negative_log_likelihood": 0.7},
    ],
    "temperature": TEMPERATURE,
    "int8": INT8,
    "probes": {"fp32": [[0.5, 0.5], [0.25, 0.75]]},
    "onnx": {
        "fp32": {
            "file": "net.onnx",
            "bytes": 3,
            "sha256": "0" * 64,
            "probes": [[0.5, 0.5], [0.25, 0.75]],
        }
    },
}
"""With a value in every field."""


def numbers(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of keys and indexes to every number in plain data."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*where, key))
    elif isinstance(value, int | float):
        yield where


def changed(where: tuple[Any, ...], to: Any) -> dict[str, Any]:
    """`FULL` with another value at one path."""
    copy = copy_of(FULL)
    *path, last = where
    place = copy
    for key in path:
        place = place[key]
    place[last] = to
    return copy


def copy_of(plain: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(plain))
    return copied


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.MANIFEST).write_text(text)
    return folder


def test_read_returns_what_was_written(tmp_path: pathlib.Path) -> None:
    """The folder contains only the manifest."""
    model = manifest.Manifest.model_validate(GOOD)
    manifest.write(tmp_path, model)
    assert manifest.read(tmp_path) == model
    assert [path.name for path in tmp_path.iterdir()] == [manifest.MANIFEST]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["cat"]}, "classes"),
        ({"classes": ["cat", "cat"]}, "same name"),
        ({"version": "0"}, "version"),
        ({"version": "latest"}, "version"),
        ({"name": "../up"}, "name"),
        ({"parameters": GOOD["parameters"] | {"file": "../net.params"}}, "parameters.file"),
        ({"parameters": GOOD["parameters"] | {"sha256": "abc"}}, "parameters.sha256"),
        ({"normalisation": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "normalisation.std"),
        ({"surprise": 1}, "surprise"),
        ({"temperature": TEMPERATURE | {"value": 0}}, "temperature.value"),
        ({"temperature": TEMPERATURE | {"value": 1e9}}, "temperature.value"),
        ({"temperature": TEMPERATURE | {"value": float("nan")}}, "temperature.value"),
        ({"int8": INT8 | {"ranges": {}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {"layer": [1, 1]}}}, "range of layer is empty"),
        ({"int8": INT8 | {"ranges": {"layer": [0, float("nan")]}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {"layer": [0, float("inf")]}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {"layer": [0, 1e30]}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {"layer": [0, "1; rm"]}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {"../layer": [0, 1]}}}, "int8.ranges"),
        ({"int8": INT8 | {"ranges": {f"layer{n}": [0, 1] for n in range(4097)}}}, "int8.ranges"),
        ({"probes": {"fp32": [[0.5, 0.3, 0.2]]}}, "one number for each class"),
        ({"probes": {"fp32": []}}, "one number for each class"),
        ({"probes": {"fp32": [[0.5, 1.5]]}}, "probes.fp32"),
        ({"probes": {"fp8": [[0.5, 0.5]]}}, "probes.fp8"),
    ],
)
def test_read_rejects_a_bad_manifest(
    tmp_path: pathlib.Path, change: dict[str, Any], message: str
) -> None:
    """The message names the file and the field that is wrong."""
    folder = write(tmp_path, json.dumps(GOOD | change))
    with pytest.raises(BadModel, match=message) as caught:
        manifest.read(folder)
    assert str(folder / manifest.MANIFEST) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "pets"}'])
def test_read_rejects_other_json(tmp_path: pathlib.Path, text: str) -> None:
    """Text that is not a manifest at all is rejected too."""
    with pytest.raises(BadModel):
        manifest.read(write(tmp_path, text))


def test_full_manifest_has_every_field(tmp_path: pathlib.Path) -> None:
    """So that the next test tries every field."""
    model = manifest.read(write(tmp_path, json.dumps(FULL)))
    assert model.model_fields_set == set(manifest.Manifest.model_fields)
    assert len(list(numbers(FULL))) == 28


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "-1e300"])
@pytest.mark.parametrize("where", list(numbers(FULL)), ids=lambda where: ".".join(map(str, where)))
def test_read_rejects_numbers_that_are_not_plausible(
    tmp_path: pathlib.Path, where: tuple[Any, ...], text: str
) -> None:
    """In any field, and in any notation of JSON."""
    described = json.dumps(changed(where, "HERE")).replace('"HERE"', text)
    with pytest.raises(BadModel, match=str(where[0])):
        manifest.read(write(tmp_path, described))


def test_write_rejects_what_could_not_be_read_back(tmp_path: pathlib.Path) -> None:
    """Also if a manifest was changed without a check."""
    model = manifest.Manifest.model_validate(FULL)
    for worse in {"training": {"rate": math.nan}}, {"probes": {"fp32": ((math.inf, 0.5),)}}:
        with pytest.raises(ValueError, match="finite"):
            manifest.write(tmp_path, model.model_copy(update=worse))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD)[:-1] + ', "training": {"deep": ' + "[" * 100_000,
        json.dumps(GOOD)[:-1] + ', "training": {"deep": ' + '{"a": ' * 5000 + "1" + "}" * 5002,
        json.dumps(GOOD)[:-1] + ', "training": {"long": ' + "9" * 5000 + "}}",
        json.dumps(GOOD) + " " * manifest.MAX_BYTES,
    ],
    ids=["deep lists", "deep objects", "many digits", "too large"],
)
def test_read_limits_nesting_digits_and_bytes(tmp_path: pathlib.Path, text: str) -> None:
    """A manifest that would be expensive to read is rejected."""
    with pytest.raises(BadModel, match=r"manifest\.json"):
        manifest.read(write(tmp_path, text))


def test_read_reads_at_most_the_limit(tmp_path: pathlib.Path) -> None:
    """A manifest of a terabyte takes no longer than one that is a byte too large."""
    os.truncate(write(tmp_path, "{}") / manifest.MANIFEST, 1 << 40)
    with pytest.raises(BadModel, match=r"more than 1,048,576 bytes"):
        manifest.read(tmp_path)


def test_read_reports_a_missing_manifest(tmp_path: pathlib.Path) -> None:
    """The message contains the system's error."""
    with pytest.raises(BadModel, match="No such file"):
        manifest.read(tmp_path / "nowhere")


def test_shipped_version_is_complete(shipped: pathlib.Path) -> None:
    """The version that ships has its parameters and a measured accuracy."""
    model = manifest.read(shipped)
    path = shipped / model.parameters.file
    assert path.stat().st_size == model.parameters.bytes
    assert sha256(path) == model.parameters.sha256
    assert model.measured[0].images == 5000
    assert (model.accuracy_in("fp32") or 0) >= 0.90


def test_recorded_probes_in_fp32_are_those_of_any_backend() -> None:
    """In other precisions, each backend has its own."""
    rows = {"fp32": [[0.5, 0.5]], "int8": [[0.25, 0.75]]}
    onnx = {
        name: {"file": f"{name}.onnx", "bytes": 1, "sha256": "0" * 64, "probes": [[0.0, 1.0]]}
        for name in ("fp32", "fp16")
    }
    both = manifest.Manifest.model_validate(GOOD | {"probes": rows, "onnx": onnx})
    assert both.recorded_probes("fp32", "mxnet") == ((0.5, 0.5),)
    assert both.recorded_probes("fp32", "onnxruntime") == ((0.0, 1.0),)
    assert both.recorded_probes("int8", "mxnet") == ((0.25, 0.75),)
    assert both.recorded_probes("int8", "onnxruntime") == ()
    assert both.recorded_probes("fp16", "onnxruntime") == ((0.0, 1.0),)
    for fields, backend in (({"probes": rows}, "onnxruntime"), ({"onnx": onnx}, "mxnet")):
        one = manifest.Manifest.model_validate(GOOD | fields)
        assert one.recorded_probes("fp32", backend) != ()  # type: ignore[arg-type]
        assert one.recorded_probes("int8", backend) == ()  # type: ignore[arg-type]
        assert one.recorded_probes("fp16", backend) == ()  # type: ignore[arg-type]


def test_files_of_two_precisions_differ() -> None:
    """Otherwise one of them would be served in a wrong precision."""
    one = {"file": "net.onnx", "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(ValidationError, match="the same file"):
        manifest.Manifest.model_validate(GOOD | {"onnx": {"fp32": one, "int8": one}})
