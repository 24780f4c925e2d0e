"""Atomic directories: a directory appears complete or not at all, even if the process is killed or
the power fails.

A directory is filled under a hidden name. The process holds a lock (flock) on it, which the kernel
releases when the process ends for any reason. The next process that adds a directory in the same
place removes hidden directories without a lock.
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
"""Names of directories that are being filled, or were when their process ended."""


class AlreadyExists(FileExistsError):
    """The target exists. Another process may have just added it."""

    def __init__(self, target: pathlib.Path) -> None:
        super().__init__(errno.EEXIST, "exists already", str(target))


@contextmanager
def atomic_directory(target: pathlib.Path, within: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty directory that becomes `target` if the block succeeds.

    If the block fails, nothing of it remains. When the context ends, all files are on the disk.

    Args:
        target: Must not exist.
        within: An ancestor of `target`. The hidden directory is created in it, and the new
            directory has the same path relative to the hidden one as `target` has to `within`.

    Raises:
        AlreadyExists: Before the block, or after it if another process was faster.
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
            with suppress(OSError):  # not empty
                parent.rmdir()


@contextmanager
def _hidden(within: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new hidden directory in `within`, locked; afterwards it is removed with its content."""
    within.mkdir(parents=True, exist_ok=True)
    hidden = within / f".{uuid.uuid4().hex}.partial"
    with _opened(within) as parent:
        # Under one lock: another process must not take a directory that is not locked yet for
        # an abandoned one.
        with suppress(OSError):  # a file system without locks: nothing is removed
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
            with suppress(OSError), _opened(path) as lock:  # locked: still being filled
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _opened(directory: pathlib.Path) -> Iterator[int]:
    """A descriptor of `directory`. Closing it releases its lock."""
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
