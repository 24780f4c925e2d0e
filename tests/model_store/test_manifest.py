"""Manifests: what is accepted, and what a person reads when one is not."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from model_store import manifest, versions
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
}
"""With a value in every field."""


def numbers(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every number in plain data."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, (*where, key))
    elif isinstance(value, int | float):
        yield where


def changed(where: tuple[Any, ...], to: Any) -> dict[str, Any]:
    """`FULL` with another value at one place."""
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


def test_round_trip(tmp_path: pathlib.Path) -> None:
    """What is written is read back the same, whole."""
    model = manifest.Manifest.model_validate(GOOD)
    manifest.write(tmp_path, model)
    assert manifest.read(tmp_path) == model
    assert [path.name for path in tmp_path.iterdir()] == [manifest.MANIFEST]


@pytest.mark.parametrize(
    ("change", "told"),
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
        ({"probes": {"fp32": [[0.5, 0.3, 0.2]]}}, "one number per class"),
        ({"probes": {"fp32": []}}, "one number per class"),
        ({"probes": {"fp32": [[0.5, 1.5]]}}, "probes.fp32"),
        ({"probes": {"fp8": [[0.5, 0.5]]}}, "probes.fp8"),
    ],
)
def test_refused(tmp_path: pathlib.Path, change: dict[str, Any], told: str) -> None:
    """A manifest that does not hold names its file and the field that is wrong."""
    folder = write(tmp_path, json.dumps(GOOD | change))
    with pytest.raises(BadModel, match=told) as caught:
        manifest.read(folder)
    assert str(folder / manifest.MANIFEST) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "pets"}'])
def test_not_a_manifest(tmp_path: pathlib.Path, text: str) -> None:
    """Neither is anything that is no manifest at all."""
    with pytest.raises(BadModel):
        manifest.read(write(tmp_path, text))


def test_full_is_accepted_and_has_every_field(tmp_path: pathlib.Path) -> None:
    """Or the next test would not try every field."""
    model = manifest.read(write(tmp_path, json.dumps(FULL)))
    assert model.model_fields_set == set(manifest.Manifest.model_fields)
    assert len(list(numbers(FULL))) == 23


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1e300", "-1e300"])
@pytest.mark.parametrize("where", list(numbers(FULL)), ids=lambda where: ".".join(map(str, where)))
def test_every_number_is_finite_and_plausible(
    tmp_path: pathlib.Path, where: tuple[Any, ...], text: str
) -> None:
    """In any field, and however JSON writes it."""
    described = json.dumps(changed(where, "HERE")).replace('"HERE"', text)
    with pytest.raises(BadModel, match=str(where[0])):
        manifest.read(write(tmp_path, described))


def test_what_could_not_be_read_back_is_not_written(tmp_path: pathlib.Path) -> None:
    """Also where a manifest was changed without being checked."""
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
def test_what_costs_too_much_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    """Nesting, digits and bytes are bounded."""
    with pytest.raises(BadModel, match=r"manifest\.json"):
        manifest.read(write(tmp_path, text))


def test_no_more_than_the_limit_is_read(tmp_path: pathlib.Path) -> None:
    """A manifest of a terabyte takes no longer than one that is a byte too large."""
    os.truncate(write(tmp_path, "{}") / manifest.MANIFEST, 1 << 40)
    with pytest.raises(BadModel, match=r"more than 1,048,576 bytes"):
        manifest.read(tmp_path)


def test_missing(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BadModel, match="No such file"):
        manifest.read(tmp_path / "nowhere")


def test_latest_is_the_highest_number(tmp_path: pathlib.Path) -> None:
    """Versions are numbers: 10 comes after 9. Folders without a manifest are none."""
    for version in ("1", "9", "10"):
        write(tmp_path / "pets" / version, json.dumps(GOOD))
    (tmp_path / "pets" / "11").mkdir()
    write(tmp_path / "pets" / ".12.partial", json.dumps(GOOD))
    assert versions.latest(tmp_path, "pets") == "10"
    assert versions.all_versions(tmp_path) == [("pets", "1"), ("pets", "9"), ("pets", "10")]


@pytest.mark.parametrize(
    "folder",
    [
        "pets/0",
        "pets/01",
        "pets/1000000000",
        "pets/99999999999",
        "pets/" + "9" * 200,
        "pets/\u0663",
        "pets/\u00b2",
        "pets/+1",
        "pets/1 ",
        "pets/latest",
        "p\u00e4ts/1",
        "pets!/1",
    ],
)
def test_other_folders_are_no_versions(tmp_path: pathlib.Path, folder: str) -> None:
    """They are neither listed nor served nor counted, and are named in one line."""
    for path in (tmp_path / "pets" / "9", tmp_path / folder):
        write(path, json.dumps(GOOD))
    assert versions.all_versions(tmp_path) == [("pets", "9")]
    assert versions.latest(tmp_path, "pets") == "9"
    assert versions.next_number(tmp_path, "pets") == "10"
    assert versions.ignored(tmp_path) == [folder]
    with pytest.raises(BadModel, match=re.escape(f"not versions by their names: {folder}")):
        versions.find(tmp_path, "cars")


@pytest.mark.parametrize("folder", [f".{'0' * 32}.partial/1", "pets/.1.partial", "..data/1"])
def test_hidden_folders_are_passed_over(tmp_path: pathlib.Path, folder: str) -> None:
    """Versions that are being added, and what Kubernetes makes in volumes."""
    write(tmp_path / folder, json.dumps(GOOD))
    assert not versions.all_versions(tmp_path)
    assert not versions.ignored(tmp_path)


def test_a_new_version_gets_the_next_number(tmp_path: pathlib.Path) -> None:
    """One more than the highest of that name; gaps stay, and others' numbers do not count."""
    for name, version in ("pets", "2"), ("pets", "10"), ("cars", "30"):
        (tmp_path / name / version).mkdir(parents=True)
        (tmp_path / name / version / "manifest.json").touch()
    assert versions.next_number(tmp_path, "pets") == "11"
    assert versions.next_number(tmp_path, "birds") == "1"


def test_unknown_model_lists_what_there_is(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "pets" / "1", json.dumps(GOOD))
    with pytest.raises(BadModel, match="pets"):
        versions.latest(tmp_path, "cars")


def test_find(tmp_path: pathlib.Path) -> None:
    """By name, by number, by both or all; where there is none, what there is is listed."""
    for name, version in (("cats", "1"), ("pets", "1"), ("pets", "2")):
        write(tmp_path / name / version, json.dumps(GOOD))
    assert versions.find(tmp_path) == [("cats", "1"), ("pets", "1"), ("pets", "2")]
    assert versions.find(tmp_path, name="pets") == [("pets", "1"), ("pets", "2")]
    assert versions.find(tmp_path, version="1") == [("cats", "1"), ("pets", "1")]
    assert versions.find(tmp_path, "pets", "2") == [("pets", "2")]
    with pytest.raises(BadModel, match=r"'pets' of version '3'.*holds cats 1, pets 1, pets 2"):
        versions.find(tmp_path, "pets", "3")


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("../esc/zz", "1", "name"),
        ("/etc", "1", "name"),
        (".hidden", "1", "name"),
        ("", "1", "name"),
        ("pets", "..", "version"),
        ("pets", "01", "version"),
    ],
)
def test_no_way_out_of_the_store(
    tmp_path: pathlib.Path, name: str, version: str, told: str
) -> None:
    """What no manifest could say is no place in the store either, and nothing is made for it."""
    with pytest.raises(BadModel, match=told):
        versions.folder(tmp_path / "store", name, version)
    with pytest.raises(BadModel, match=told), versions.adding(tmp_path / "store", name, version):
        pass
    assert not list(tmp_path.iterdir())


def test_added_under_its_own_name(tmp_path: pathlib.Path) -> None:
    """A version can be read as one, and so be verified, before it appears."""
    with versions.adding(tmp_path, "pets", "3") as partial:
        manifest.write(partial, manifest.Manifest.model_validate(GOOD))
        assert versions.read_manifest(partial).name == "pets"
        assert not versions.all_versions(tmp_path)
    assert versions.all_versions(tmp_path) == [("pets", "3")]


def add(store: pathlib.Path, who: str, then: Callable[[], None] = lambda: None) -> None:
    with versions.adding(store, "pets", "3") as partial:
        (partial / who).touch()
        then()


def test_the_second_to_finish_is_refused(tmp_path: pathlib.Path) -> None:
    """Two processes add the same version: the first to finish stays, the other gets a line."""
    with pytest.raises(BadModel, match="exists; versions are never overwritten"):
        add(tmp_path, "slow", then=lambda: add(tmp_path, "fast"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["3", "fast", "pets"]
    with pytest.raises(BadModel, match="exists"):
        versions.vacant_folder(tmp_path, "pets", "3")


@pytest.mark.parametrize("where", ["cats/3", "pets/4"])
def test_in_another_s_place(tmp_path: pathlib.Path, where: str) -> None:
    """A manifest that lies under another name or number is not the one that was asked for."""
    folder = write(tmp_path / where, json.dumps(GOOD))
    assert manifest.read(folder).name == "pets"
    with pytest.raises(BadModel, match=rf"is of pets 3 and lies where {where.replace('/', ' ')}"):
        versions.read_manifest(folder)


def test_what_ships(shipped: pathlib.Path) -> None:
    """The model that ships is whole, and says how good it is and on what that was measured."""
    model = manifest.read(shipped)
    path = shipped / model.parameters.file
    assert path.stat().st_size == model.parameters.bytes
    assert sha256(path) == model.parameters.sha256
    assert model.measured[0].images == 5000
    assert (model.accuracy_in("fp32") or 0) >= 0.90
