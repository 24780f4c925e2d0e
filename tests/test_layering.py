"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("batching", "model_store", "service", "shoal")
MAY_IMPORT = {
    "batching": {"batching"},
    "model_store": {"model_store"},
    "service": {"batching", "model_store", "service"},
    "shoal": {"batching", "model_store", "service", "shoal"},
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).glob("**/*.py"))


def imports(path: pathlib.Path) -> Iterator[str]:
    """Top-level names of everything that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: pathlib.Path) -> None:
    """`service` knows `batching` and `model_store`, which know neither each other nor it; `shoal`
    knows them all, and none of them knows `shoal`."""
    package = path.relative_to(ROOT).parts[0]
    assert set(imports(path)) & {*PACKAGES, "tests", "benchmarks"} <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", sorted((ROOT / "batching").glob("*.py")), ids=lambda p: p.name)
def test_batching_is_standard_library_only(path: pathlib.Path) -> None:
    """The batcher can be lifted out and used for anything."""
    assert set(imports(path)) <= set(sys.stdlib_module_names) | {"batching"}


def test_one_door_to_mxnet() -> None:
    """Nobody imports mxnet or gluoncv by a statement; `model_store.runtime` loads it."""
    assert not [path for path in MODULES if {"mxnet", "gluoncv"} & set(imports(path))]


def test_http_without_mxnet() -> None:
    """A process that only speaks HTTP imports the whole service, and neither MXNet nor the packages
    of the extras `grpc` and `otel`."""
    unwanted = "{'mxnet', 'grpc', 'google.protobuf', 'opentelemetry.sdk'}"
    code = "import service.__main__, service.workers.__main__, sys; "
    code += f"sys.exit(len({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_one_door_to_grpc() -> None:
    """gRPC and its messages are known in `service/rpc`, which only `app` knows."""
    for path in MODULES:
        inside = path.parent.name == "rpc"
        assert inside or not {"grpc", "google"} & set(imports(path))
        assert inside or path.name == "app.py" or "service.rpc" not in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "service").rglob("*.py")), ids=lambda p: p.name)
def test_only_app_builds(path: pathlib.Path) -> None:
    """Engines and applications are built in one place."""
    if path.name in ("app.py", "__main__.py"):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    called = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not called & {"GluonEngine", "FastAPI", "Local", "Hub", "create_app", "create_hub"}
