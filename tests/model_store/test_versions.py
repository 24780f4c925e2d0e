"""Versions in a store: finding, adding and reading them."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable

import pytest

from model_store import manifest, versions
from model_store.manifest import BadModel
from tests.model_store.test_manifest import GOOD, write


def test_latest_is_the_highest_number(tmp_path: pathlib.Path) -> None:
    """Versions are numbers: 10 comes after 9. Folders without a manifest are not versions."""
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
def test_other_folders_are_not_versions(tmp_path: pathlib.Path, folder: str) -> None:
    """They are neither listed nor served nor counted, and one line names them."""
    for path in (tmp_path / "pets" / "9", tmp_path / folder):
        write(path, json.dumps(GOOD))
    assert versions.all_versions(tmp_path) == [("pets", "9")]
    assert versions.latest(tmp_path, "pets") == "9"
    assert versions.next_number(tmp_path, "pets") == "10"
    assert versions.ignored(tmp_path) == [folder]
    with pytest.raises(
        BadModel, match=re.escape(f"these names are not valid for versions: {folder}")
    ):
        versions.find(tmp_path, "cars")


@pytest.mark.parametrize("folder", [f".{'0' * 32}.partial/1", "pets/.1.partial", "..data/1"])
def test_hidden_folders_are_ignored(tmp_path: pathlib.Path, folder: str) -> None:
    """Versions that are being added, and folders that Kubernetes creates in volumes."""
    write(tmp_path / folder, json.dumps(GOOD))
    assert not versions.all_versions(tmp_path)
    assert not versions.ignored(tmp_path)


def test_next_number_follows_the_highest(tmp_path: pathlib.Path) -> None:
    """Gaps stay, and other models do not count."""
    for name, version in ("pets", "2"), ("pets", "10"), ("cars", "30"):
        (tmp_path / name / version).mkdir(parents=True)
        (tmp_path / name / version / "manifest.json").touch()
    assert versions.next_number(tmp_path, "pets") == "11"
    assert versions.next_number(tmp_path, "birds") == "1"


def test_latest_of_an_unknown_model_lists_all_versions(tmp_path: pathlib.Path) -> None:
    """The message lists all versions."""
    write(tmp_path / "pets" / "1", json.dumps(GOOD))
    with pytest.raises(BadModel, match="pets"):
        versions.latest(tmp_path, "cars")


def test_find_matches_name_and_number(tmp_path: pathlib.Path) -> None:
    """By name, by number, by both or neither. If there is none, the message lists all versions."""
    for name, version in (("cats", "1"), ("pets", "1"), ("pets", "2")):
        write(tmp_path / name / version, json.dumps(GOOD))
    assert versions.find(tmp_path) == [("cats", "1"), ("pets", "1"), ("pets", "2")]
    assert versions.find(tmp_path, name="pets") == [("pets", "1"), ("pets", "2")]
    assert versions.find(tmp_path, version="1") == [("cats", "1"), ("pets", "1")]
    assert versions.find(tmp_path, "pets", "2") == [("pets", "2")]
    with pytest.raises(BadModel, match=r"'pets' of version '3'.*holds cats 1, pets 1, pets 2"):
        versions.find(tmp_path, "pets", "3")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("../esc/zz", "1", "name"),
        ("/etc", "1", "name"),
        (".hidden", "1", "name"),
        ("", "1", "name"),
        ("pets", "..", "version"),
        ("pets", "01", "version"),
    ],
)
def test_folder_stays_in_the_store(
    tmp_path: pathlib.Path, name: str, version: str, message: str
) -> None:
    """A name or number that no manifest can have is rejected, and nothing is created."""
    with pytest.raises(BadModel, match=message):
        versions.folder(tmp_path / "store", name, version)
    with pytest.raises(BadModel, match=message), versions.adding(tmp_path / "store", name, version):
        pass
    assert not list(tmp_path.iterdir())


def test_adding_gives_the_version_its_place(tmp_path: pathlib.Path) -> None:
    """A version can be read and verified before it appears."""
    with versions.adding(tmp_path, "pets", "3") as partial:
        manifest.write(partial, manifest.Manifest.model_validate(GOOD))
        assert versions.read_manifest(partial).name == "pets"
        assert not versions.all_versions(tmp_path)
    assert versions.all_versions(tmp_path) == [("pets", "3")]


def add(store: pathlib.Path, file: str, then: Callable[[], None] = lambda: None) -> None:
    with versions.adding(store, "pets", "3") as partial:
        (partial / file).touch()
        then()


def test_adding_rejects_the_second_to_finish(tmp_path: pathlib.Path) -> None:
    """If two processes add the same version, the first to finish stays."""
    with pytest.raises(BadModel, match="exists; versions are never overwritten"):
        add(tmp_path, "slow", then=lambda: add(tmp_path, "fast"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["3", "fast", "pets"]
    with pytest.raises(BadModel, match="exists"):
        versions.vacant_folder(tmp_path, "pets", "3")


@pytest.mark.parametrize("where", ["cats/3", "pets/4"])
def test_read_manifest_rejects_another_place(tmp_path: pathlib.Path, where: str) -> None:
    """A manifest under another name or number is rejected."""
    folder = write(tmp_path / where, json.dumps(GOOD))
    assert manifest.read(folder).name == "pets"
    with pytest.raises(
        BadModel, match=rf"describes pets 3 but is in the folder of {where.replace('/', ' ')}"
    ):
        versions.read_manifest(folder)
