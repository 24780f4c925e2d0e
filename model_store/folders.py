"""Folders that appear whole or not at all, though the process or the power may end at any time.

A folder is filled under a hidden name, and holds a lock on it (flock) that the kernel releases when
the process ends, however it ends. What a killed process left is removed by the next one that adds a
folder in the same place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HIDDEN = re.compile(r"\.[0-9a-f]{32}\.partial")
"""Names of folders that are being filled, or were when their process ended."""


class AlreadyThere(FileExistsError):
    """The folder is there already, perhaps since a moment ago."""

    def __init__(self, target: pathlib.Path) -> None:
        super().__init__(errno.EEXIST, "exists already", str(target))


@contextmanager
def appearing(target: pathlib.Path, within: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that becomes `target`, which lies in `within`, where the block succeeds.

    It is filled in a hidden folder of `within`, on the same path from there as `target`. Where the
    block fails, nothing remains of it. When the block has ended, all is on the disk.

    Raises AlreadyThere, before the block or, where another process was faster, after it.
    """
    if target.exists():
        raise AlreadyThere(target)
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        with _hidden(within) as hidden:
            partial = hidden / target.relative_to(within)
            partial.mkdir(parents=True)
            yield partial
            _publish(partial, target)
            for folder in {target.parent, within}:
                _sync(folder)
    finally:
        for folder in made:
            with suppress(OSError):  # something is in it now
                folder.rmdir()


@contextmanager
def _hidden(within: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new hidden folder in `within`, locked, and removed afterwards with what is in it."""
    within.mkdir(parents=True, exist_ok=True)
    hidden = within / f".{uuid.uuid4().hex}.partial"
    with _opened(within) as place:
        # Under one lock, or another process might take a folder for abandoned before it is locked.
        with suppress(OSError):  # a file system without locks: nothing is removed
            fcntl.flock(place, fcntl.LOCK_EX)
            _remove_abandoned(within)
        hidden.mkdir()
        lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(within: pathlib.Path) -> None:
    """Remove hidden folders whose processes have ended."""
    for folder in within.iterdir():
        if HIDDEN.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            with suppress(OSError), _opened(folder) as lock:  # locked: still being filled
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    """A descriptor of `folder`; closing it releases its lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _publish(partial: pathlib.Path, target: pathlib.Path) -> None:
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    target.parent.mkdir(exist_ok=True)
    try:
        partial.rename(target)
    except OSError as error:
        if target.exists():
            raise AlreadyThere(target) from error
        raise


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
