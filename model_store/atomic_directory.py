"""Atomic directories: creates directories that appear complete or not at all.

An incomplete directory never appears under its final name, even if the process is killed or the
power fails. A directory is filled under a hidden name and then renamed. While the process fills the
hidden directory, the process holds a lock (flock) on the directory. The kernel releases the lock
when the process ends for any reason. The next process that creates a directory in the same place
removes the hidden directories that have no lock.
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
"""Pattern of the names of hidden directories."""


class AlreadyExists(FileExistsError):
    """The target directory exists. Another process may have just created it."""

    def __init__(self, target: pathlib.Path) -> None:
        super().__init__(errno.EEXIST, "exists already", str(target))


@contextmanager
def atomic_directory(target: pathlib.Path, within: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield an empty directory that becomes `target` if the block succeeds.

    Before the directory is renamed, all its files are written to the disk. If the block raises, the
    directory and its files are removed.

    Args:
        target: Path of the new directory, which must not exist.
        within: An ancestor of `target`. The hidden directory is created there.

    Raises:
        AlreadyExists: `target` exists. This error is also raised after the block, if another
            process has created `target` in the meantime.
    """
    if target.exists():
        raise AlreadyExists(target)
    created = [parent for parent in target.parents if not parent.exists()]
    try:
        with _hidden(within) as hidden:
            partial = hidden / target.relative_to(within)
            partial.mkdir(parents=True)
            yield partial
            _publish(partial, target)
            for parent in {target.parent, within}:
                _sync(parent)
    finally:
        for parent in created:
            with suppress(OSError):  # the directory is not empty
                parent.rmdir()


@contextmanager
def _hidden(within: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a new hidden directory in `within` with a lock, and finally remove the directory."""
    within.mkdir(parents=True, exist_ok=True)
    hidden = within / f".{uuid.uuid4().hex}.partial"
    with _opened(within) as parent:
        # A new directory has no lock at first, so another process could remove it. To prevent this,
        # directories are created and removed only while a lock on `within` is held.
        with suppress(OSError):  # the file system has no locks, so no directory is removed
            fcntl.flock(parent, fcntl.LOCK_EX)
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
    """Remove hidden directories whose processes have ended."""
    for path in within.iterdir():
        if HIDDEN.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(OSError), _opened(path) as lock:  # OSError: a process has the lock
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _opened(directory: pathlib.Path) -> Iterator[int]:
    """Yield a file descriptor of `directory`. Closing the descriptor releases its lock."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
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
            raise AlreadyExists(target) from error
        raise


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
