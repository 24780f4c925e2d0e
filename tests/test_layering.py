"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

from tests.sources import ROOT, modules, nodes

PACKAGES = ("batching", "model_store", "service", "shoal")
MAY_IMPORT = {
    "batching": {"batching"},
    "model_store": {"model_store"},
    "service": {"batching", "model_store", "service"},
    "shoal": {"batching", "model_store", "service", "shoal"},
}
MODULES = modules(*PACKAGES)


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """Top-level names of everything that a module imports, wherever in it."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module).partition(".")[0])
    return frozenset(found)


def test_layers() -> None:
    """`service` knows `batching` and `model_store`, which know neither each other nor it; `shoal`
    knows them all, and none of them knows `shoal`."""
    for path in MODULES:
        package = path.relative_to(ROOT).parts[0]
        assert imports(path) & {*PACKAGES, "tests", "benchmarks"} <= MAY_IMPORT[package], path


def test_batching_is_standard_library_only() -> None:
    """The batcher can be lifted out and used for anything."""
    for path in modules("batching"):
        assert imports(path) <= {*sys.stdlib_module_names, "batching"}, path


def test_one_door_to_mxnet() -> None:
    """Nobody imports mxnet or gluoncv by a statement; `model_store.runtime` loads it."""
    assert not [path for path in MODULES if {"mxnet", "gluoncv"} & imports(path)]


def test_only_the_command_imports_training() -> None:
    """Only `model_store.training` itself and the command line import `model_store.training`."""
    for path in MODULES:
        inside = path.is_relative_to(ROOT / "model_store" / "training")
        command = path == ROOT / "model_store" / "__main__.py"
        text = path.read_text()
        unknown = not re.search(r"model_store\.training|model_store import .*\btraining\b", text)
        assert inside or command or unknown, path


@pytest.mark.slow
def test_a_server_does_not_load_training() -> None:
    """A process that has imported everything that serves a model has no module of training."""
    code = "import service.__main__, model_store.engine, sys; "
    code += "sys.exit(any(name.startswith('model_store.training') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_http_without_mxnet() -> None:
    """A process that only speaks HTTP imports the whole service, and neither MXNet nor the packages
    of the extras `grpc` and `otel`."""
    unwanted = "{'mxnet', 'grpc', 'google.protobuf', 'opentelemetry.sdk'}"
    code = "import service.__main__, sys; "
    code += f"sys.exit(len({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_one_door_to_grpc() -> None:
    """gRPC and its messages are known in `service/grpc`, which only `app` knows."""
    for path in MODULES:
        inside = path.parent.name == "grpc"
        assert inside or not {"grpc", "google"} & imports(path)
        assert inside or path.name == "app.py" or "service.grpc" not in path.read_text()


def test_only_app_builds() -> None:
    """Engines and applications are built in one place."""
    built = {"GluonEngine", "FastAPI", "Local", "Hub", "create_app", "create_hub"}
    for path in modules("service"):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
        called = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert path.name in ("app.py", "__main__.py") or not called & built, path
