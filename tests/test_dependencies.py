"""docs/dependencies.md knows every package that is installed, and what each is for."""

from __future__ import annotations

import functools
import pathlib
import re
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
COLUMNS = 5


def normal(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def rows() -> list[list[str]]:
    """The cells of each row that describes packages."""
    lines = (ROOT / "docs/dependencies.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return [row for row in cells if len(row) == COLUMNS and row[0] not in ("package", "---")]


def named(cell: str) -> set[str]:
    """`fastapi (with starlette, anyio)` -> those three; `nvidia-*-cu11` stands for a family."""
    return {normal(word) for word in re.findall(r"[A-Za-z][\w.*-]*", cell)}


def described(name: str) -> bool:
    names = {one for cells in rows() for one in named(cells[0])}
    family = re.sub(r"^nvidia-.*-cu11$", "nvidia-*-cu11", name)
    return bool({name, family} & names)


def declared() -> Iterator[str]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for requirement in [*needed, *(one for extra in extras for one in extra)]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        yield normal(name[0])


def test_every_dependency_has_its_row() -> None:
    assert [name for name in sorted(set(declared())) if not described(name)] == []


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_everything_that_serves_is_named(extra: str) -> None:
    """With whom it comes, if nobody asked for it."""
    lock = (ROOT / f"requirements/{extra}.lock").read_text()
    locked = re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)
    assert len(locked) > 10
    assert [name for name in locked if not described(normal(name))] == []


def test_every_row_says_all() -> None:
    """Why this one, who keeps it, its licence, and what it takes to leave it."""
    assert len(rows()) > 20
    assert [cells[0] for cells in rows() if not all(cells)] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locked_with_hashes(lock: pathlib.Path) -> None:
    """Every package to its version and its bytes."""
    for block in re.split(r"^(?=[\w.-]+==)", lock.read_text(), flags=re.MULTILINE)[1:]:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", block), block.partition("\n")[0]
