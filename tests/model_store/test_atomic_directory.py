"""Atomic directories: they appear complete or not at all, and are on the disk."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.processes import started
from model_store.atomic_directory import AlreadyExists, atomic_directory
from tests.sources import ROOT


def fill(target: pathlib.Path, within: pathlib.Path, then: Callable[[], None]) -> None:
    with atomic_directory(target, within) as partial:
        (partial / "file").touch()
        then()


def fail() -> None:
    raise RuntimeError


def test_directory_appears_when_the_block_succeeds(tmp_path: pathlib.Path) -> None:
    """It is not visible before the block has ended, and nothing else is visible afterwards."""
    target = tmp_path / "store" / "pets" / "1"
    with atomic_directory(target, within=tmp_path / "store") as partial:
        (partial / "file").write_text("content")
        assert partial.parts[-2:] == target.parts[-2:]
        assert not target.parent.exists()
    assert (target / "file").read_text() == "content"
    assert list((tmp_path / "store").iterdir()) == [target.parent]


def test_failed_block_leaves_nothing(tmp_path: pathlib.Path) -> None:
    """Directories that were created for it are removed too."""
    store = tmp_path / "new" / "store"
    with pytest.raises(RuntimeError):
        fill(store / "pets" / "1", store, fail)
    assert not list(tmp_path.iterdir())


def test_failed_block_leaves_existing_directories(tmp_path: pathlib.Path) -> None:
    """Directories that existed before stay, even if they are empty."""
    (tmp_path / "pets").mkdir()
    with pytest.raises(RuntimeError):
        fill(tmp_path / "pets" / "1", tmp_path, fail)
    assert list(tmp_path.iterdir()) == [tmp_path / "pets"]


def test_existing_target_is_rejected(tmp_path: pathlib.Path) -> None:
    """The block does not run, and the message names the target."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(AlreadyExists, match="taken"):
        fill(tmp_path / "taken", tmp_path, fail)


def test_slower_writer_is_rejected(tmp_path: pathlib.Path) -> None:
    """A directory that another writer has added meanwhile is neither replaced nor changed."""
    target = tmp_path / "1"

    def faster() -> None:
        with atomic_directory(target, within=tmp_path) as partial:
            (partial / "faster").touch()

    with pytest.raises(AlreadyExists):
        fill(target, tmp_path, faster)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "faster"]


FILLS = """
import pathlib, sys
from model_store.atomic_directory import atomic_directory
store = pathlib.Path(sys.argv[1])
with atomic_directory(store / "pets" / "1", within=store) as partial:
    (partial / "file").touch()
    print("filling", flush=True)
    sys.stdin.read()
"""


@contextmanager
def filling(store: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that adds `pets/1` and does not finish."""
    command = [sys.executable, "-c", FILLS, str(store)]
    pipe = subprocess.PIPE
    with started(command, grace=0, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        yield process


def hidden(store: pathlib.Path) -> list[str]:
    return [path.name for path in store.iterdir() if path.name.startswith(".")]


def add_another(store: pathlib.Path, number: int) -> None:
    with atomic_directory(store / "pets" / str(number), within=store) as partial:
        (partial / "file").touch()


def test_next_writer_removes_what_a_killed_process_left(tmp_path: pathlib.Path) -> None:
    """Directories that are still being filled, or only have a similar name, are not removed."""
    (tmp_path / f".{'a' * 32}.partial").symlink_to(tmp_path)
    (tmp_path / ".mine.partial").mkdir()
    with filling(tmp_path):
        (left,) = set(hidden(tmp_path)) - {f".{'a' * 32}.partial", ".mine.partial"}
        add_another(tmp_path, 2)
        assert left in hidden(tmp_path), "its process is still filling it"
    assert left in hidden(tmp_path), "its process was killed"
    add_another(tmp_path, 3)
    assert sorted(hidden(tmp_path)) == sorted([f".{'a' * 32}.partial", ".mine.partial"])
    assert sorted(path.name for path in (tmp_path / "pets").iterdir()) == ["2", "3"]


def test_failing_writer_removes_what_a_killed_process_left(tmp_path: pathlib.Path) -> None:
    """Whether or not the block succeeds."""
    (tmp_path / f".{'b' * 32}.partial" / "pets" / "7").mkdir(parents=True)
    with pytest.raises(RuntimeError):
        fill(tmp_path / "pets" / "1", tmp_path, fail)
    assert not list(tmp_path.iterdir())


def test_content_is_synced_before_the_directory_appears(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are synced before the rename, and the parent directories after it."""
    target = tmp_path / "pets" / "1"
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_directory(target, within=tmp_path) as partial:
        (partial / "file").touch()
        (partial / "folder").mkdir()
        (partial / "folder" / "inner").touch()
    before = {(name, False) for name in ("1", "file", "folder", "inner")}
    assert set(synced) == before | {("pets", True), (tmp_path.name, True)}
