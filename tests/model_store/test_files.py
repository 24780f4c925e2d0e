"""Files of the store: regular files of limited size are read, others are rejected at once."""

from __future__ import annotations

import hashlib
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from model_store import manifest, store, versions
from model_store.files import read_regular
from model_store.manifest import BadModel, Parameters
from model_store.params import BadParams, opened, read_params, sha256, write_params
from model_store.training import checkpoint, cifar10
from model_store.training.cifar10 import BadDataset
from tests.model_store.test_manifest import GOOD

KINDS: dict[str, Callable[[pathlib.Path], object]] = {
    "fifo": os.mkfifo,
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "folder": pathlib.Path.mkdir,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "empty device": lambda path: path.symlink_to("/dev/null"),
    "link to a fifo": lambda path: _link(path, os.mkfifo),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
}
DESCRIBED = Parameters(file="net.params", bytes=10, sha256="0" * 64)
READERS: dict[str, tuple[Callable[[pathlib.Path], object], str, tuple[type[Exception], ...]]] = {
    "manifest": (manifest.read, manifest.MANIFEST, (BadModel,)),
    "parameters": (lambda folder: read_params(folder / "net.params"), "net.params", (BadParams,)),
    "described parameters": (
        lambda folder: versions.read_parameters(folder / "net.params", DESCRIBED),
        "net.params",
        (BadParams, BadModel),
    ),
    "checksum": (lambda folder: sha256(folder / "net.params"), "net.params", (OSError,)),
    "classes": (lambda folder: store.read_classes(folder / "classes"), "classes", (BadModel,)),
    "data set": (cifar10.read_test, "test_batch.bin", (BadDataset,)),
    "checkpoint": (checkpoint.progress_of, checkpoint.STATE, (OSError,)),
}


def _link(path: pathlib.Path, make: Callable[[pathlib.Path], object]) -> None:
    target = path.with_name("target")
    make(target)
    path.symlink_to(target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_readers_reject_files_that_are_not_regular(
    tmp_path: pathlib.Path, reader: str, kind: str
) -> None:
    """Every reader rejects them without waiting, with an error of its own kind."""
    read, name, errors = READERS[reader]
    KINDS[kind](tmp_path / name)
    with pytest.raises(errors):
        read(tmp_path)


def test_readers_follow_links(tmp_path: pathlib.Path) -> None:
    """Kubernetes mounts volumes as links to links."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "file").write_bytes(b"content")
    (tmp_path / "file").symlink_to("..data/file")
    assert read_regular(tmp_path / "file", 7) == b"content"
    with pytest.raises(OSError, match="more than 6 bytes"):
        read_regular(tmp_path / "file", 6)


OPENED: list[str] = []
COUNTING: list[str] = []
"""Names of files whose openings are counted at the moment."""


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and COUNTING and pathlib.Path(str(arguments[0])).name in COUNTING:
        OPENED.append(str(arguments[0]))


@contextmanager
def counted(name: str) -> Iterator[list[str]]:
    if _count not in HOOKS:
        sys.addaudithook(_count)  # for the rest of the process
        HOOKS.append(_count)
    OPENED.clear()
    COUNTING.append(name)
    try:
        yield OPENED
    finally:
        COUNTING.clear()


HOOKS: list[Callable[[str, tuple[Any, ...]], None]] = []


def described(path: pathlib.Path) -> Parameters:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Parameters(file=path.name, bytes=len(content), sha256=digest)


def test_read_parameters_opens_the_file_once(tmp_path: pathlib.Path) -> None:
    """The bytes that are hashed are the bytes that are loaded."""
    path = tmp_path / "net.params"
    write_params(path, {"weight": np.ones((3, 4), np.float32)})
    wanted = described(path)
    with counted("net.params") as openings:
        arrays = versions.read_parameters(path, wanted)
    assert openings == [str(path)]
    assert arrays["weight"].sum() == 12


def test_read_parameters_keeps_a_file_that_is_replaced(tmp_path: pathlib.Path) -> None:
    """If another file is renamed over it meanwhile, the digest is of the bytes that were read."""
    path, other = tmp_path / "net.params", tmp_path / "other.params"
    write_params(path, {"weight": np.ones(4, np.float32)})
    write_params(other, {"weight": np.zeros(4, np.float32)})
    wanted = described(path)
    with opened(path) as source:
        other.replace(path)
        assert source.arrays()["weight"].sum() == 4
        assert source.sha256() == wanted.sha256
    with pytest.raises(BadModel, match="SHA-256"):
        versions.read_parameters(path, wanted)


def test_manifest_limits_the_size_of_parameters(tmp_path: pathlib.Path) -> None:
    """No manifest can make the reader read more than a gibibyte."""
    parameters = GOOD["parameters"] | {"bytes": manifest.MAX_PARAMS_BYTES + 1}
    with pytest.raises(ValueError, match="bytes"):
        manifest.Manifest.model_validate(GOOD | {"parameters": parameters})
