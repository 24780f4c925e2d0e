"""docs/dependencies.md knows every package that is installed, and what each is for."""

from __future__ import annotations

import functools
import pathlib
import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.shoal.test_without_extras import SERVER

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / "requirements").rglob("*.lock"))
INSTALLERS = [
    ROOT / name for name in ("Makefile", "Dockerfile", "k8s/check", ".ci/run", ".githooks")
] + sorted((ROOT / ".github").rglob("*.yml"))
BACKENDS = ("cpu", "gpu", "onnx", "openvino", "onnx-gpu")
"""Extras that contain everything that a server needs."""
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
    family = "nvidia-*-cu11" if name.endswith("-cu11") else re.sub(r"^nvidia-.*", "nvidia-*", name)
    return bool({name, family} & names)


def declared() -> Iterator[str]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for requirement in [*needed, *(one for extra in extras for one in extra)]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        if name[0] != PROJECT["project"]["name"]:  # an extra that contains another one
            yield normal(name[0])


def locked(name: str) -> dict[str, set[str]]:
    """The packages of a lock file, and the versions of each for different Pythons."""
    found: dict[str, set[str]] = {}
    lock = (ROOT / f"requirements/{name}.lock").read_text()
    for package, version in re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE):
        found.setdefault(normal(package), set()).add(version)
    return found


def test_every_dependency_has_its_row() -> None:
    assert [name for name in sorted(set(declared())) if not described(name)] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_packages_of_servers_have_rows(backend: str) -> None:
    """Every package that a server installs has a row, those that others require included."""
    packages = locked(backend)
    assert len(packages) > 10
    assert [name for name in packages if not described(name)] == []


def test_the_makefile_knows_all_backends() -> None:
    """`EXTRA` may name each backend, and the extra of each contains the extra `server`."""
    (names,) = re.findall(r"^BACKENDS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert names.split() == list(BACKENDS)
    extras = PROJECT["project"]["optional-dependencies"]
    assert all({"shoal[server]", "shoal[onnx]"} & set(extras[name]) for name in BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_has_one_build_of_its_library(backend: str) -> None:
    """MXNet's two packages, and ONNX Runtime's two, install the same files over each other."""
    library = {
        "cpu": "mxnet",
        "gpu": "mxnet-cu112",
        "onnx": "onnxruntime",
        "openvino": "onnxruntime",
        "onnx-gpu": "onnxruntime-gpu",
    }[backend]
    builds = {"mxnet", "mxnet-cu112", "onnxruntime", "onnxruntime-gpu"}
    assert builds & set(locked(backend)) == {library}


@pytest.mark.parametrize("lock", ["dev", "train"])
def test_additions_leave_the_backend_alone(lock: str) -> None:
    """What is installed on top of any backend has no NumPy and no library of a backend: MXNet needs
    NumPy 1, and ONNX Runtime's GPU build must not be overwritten."""
    additions = set(locked(lock))
    assert not {"mxnet", "numpy", "onnxruntime", "onnxruntime-gpu"} & additions
    assert "numpy" not in locked("export")


def test_lock_files_agree() -> None:
    """A package has the same versions in all lock files that can be combined. NumPy differs between
    the backends, which are never combined."""
    versions: dict[str, set[frozenset[str]]] = {}
    for lock in (*BACKENDS, "export", "train", "dev"):
        for package, found in locked(lock).items():
            versions.setdefault(package, set()).add(frozenset(found))
    assert {package for package, found in versions.items() if len(found) > 1} == {"numpy"}


def test_numpy_2_is_for_backends_without_mxnet() -> None:
    """MXNet's lock files have NumPy 1 for its Pythons, and ONNX Runtime's have NumPy 2 only."""
    assert "1.26.4" in locked("cpu")["numpy"] & locked("gpu")["numpy"]
    for backend in ("onnx", "openvino", "onnx-gpu"):
        assert all(version.startswith("2.") for version in locked(backend)["numpy"])


def test_clients_need_no_package_of_a_server() -> None:
    """The packages of the extra `server` are hidden in the tests of an installation without extras,
    and NumPy 1 is excluded by the extras with MXNet only."""
    modules = {
        "fastapi-offline": "fastapi_offline",
        "opentelemetry-api": "opentelemetry",
        "pillow": "PIL",
        "prometheus-client": "prometheus_client",
        "python-multipart": "python_multipart",
    }
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {re.split(r"[<>=;]", requirement)[0] for requirement in extras["server"]}
    assert {modules.get(name, name) for name in needed} <= set(SERVER)
    assert [name for name, extra in extras.items() if any("numpy<2" in one for one in extra)] == [
        "cpu",
        "gpu",
    ]


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
