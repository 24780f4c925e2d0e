"""Folders that appear whole or not at all, though the process or the power may end at any time."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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
    hidden = within / f".{uuid.uuid4().hex}.partial"
    partial = hidden / target.relative_to(within)
    try:
        partial.mkdir(parents=True)
        yield partial
        _publish(partial, target)
        for folder in {target.parent, within}:
            _sync(folder)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # something is in it now
                folder.rmdir()


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
