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
LOCKS = sorted((ROOT / "requirements").rglob("*.lock"))
INSTALLERS = [
    ROOT / name for name in ("Makefile", "Dockerfile", "k8s/check", ".ci/run", ".githooks")
] + sorted((ROOT / ".github").rglob("*.yml"))
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


def test_tools_are_locked_too() -> None:
    """What a tool's `.in` names is in its lock file, in that version."""
    asked = sorted((ROOT / "requirements/tools").glob("*.in"))
    assert {path.stem for path in asked} == {
        path.stem for path in (ROOT / "requirements/tools").glob("*.lock")
    }
    for path in asked:
        lock = path.with_suffix(".lock").read_text()
        for requirement in path.read_text().split():
            assert re.search(rf"^{re.escape(requirement)} \\$", lock, re.MULTILINE), requirement


def test_nothing_is_installed_without_hashes() -> None:
    """Wherever the project calls pip, a lock file with hashes says what is installed."""
    calls = 0
    for path in INSTALLERS:
        for file in path.rglob("*") if path.is_dir() else [path]:
            text = re.sub(r"\\\n", " ", file.read_text())
            hashed = "PIP_REQUIRE_HASHES=1" in text
            for line in text.splitlines():
                if re.search(r"\bpip\b.* install\b", line.partition("#")[0]):
                    calls += 1
                    assert hashed or "--require-hashes" in line, f"{file.name}: {line.strip()}"
    assert calls >= 4


def test_actions_are_pinned_by_commit() -> None:
    """Tags of actions move, and what they run may publish images."""
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for used in re.findall(r"uses: (\S+)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", used), f"{path.name}: {used}"


def test_only_a_pinned_base_is_published() -> None:
    """The workflow ends before it builds where the Dockerfile's base has no digest, and `make
    pin-base` writes one into the line that the workflow looks at."""
    workflow = (ROOT / ".github/workflows/publish.yml").read_text()
    found = re.search(r"grep -Eq '(.+)' Dockerfile; then\n.+\n +exit 1", workflow)
    assert found is not None and found.start() < workflow.index("make image")
    (base,) = re.findall(r"^ARG BASE=.+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    tagged = base.partition("@")[0]
    assert re.search(found[1], f"{tagged}@sha256:{'0' * 64}")
    assert not re.search(found[1], tagged)
    assert f"BASE := {tagged.removeprefix('ARG BASE=')}\n" in (ROOT / "Makefile").read_text()
