"""Which module may import which, read from the import statements."""

from __future__ import annotations

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

from tests.sources import ROOT, modules, nodes

PACKAGES = {
    "batching": {"batching"},
    "model_store": {"model_store"},
    "service": {"batching", "model_store", "service"},
    "shoal": {"batching", "model_store", "service", "shoal"},
}
"""Each package, and the packages that it may import."""
LAYERS = (
    "errors",
    "exit_status",
    "settings",
    "rate_limit",
    "telemetry",
    "http",
    "decoding",
    "upload",
    "inference",
    "server",
    "api",
    "v2",
    "grpc",
    "workers",
    "app",
    "__main__",
)
"""Folders and files at the top of `service`, the lowest first. Each may import lower ones."""
LIBRARIES = {
    "mxnet": "model_store/mxnet",
    "gluoncv": "model_store/mxnet",
    "onnx": "model_store/onnx",
    "onnxruntime": "model_store/onnx",
    "openvino": "model_store/onnx",
}
"""Each library of a backend, and the only folder that may import it."""
MODULES = modules(*PACKAGES)
MAX_UNTESTED_LINES = 100
"""Maximum number of lines of a module that has no test module of its own."""


@functools.cache
def imports(path: pathlib.Path) -> frozenset[str]:
    """Full names of everything that a module imports, wherever in it."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def packages(path: pathlib.Path) -> set[str]:
    """The top-level packages that a module imports."""
    return {name.partition(".")[0] for name in imports(path)}


def imported_by_call(path: pathlib.Path) -> list[str]:
    """Names of modules that a module imports with `importlib.import_module("name")`."""
    return [
        node.args[0].value
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "import_module"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ]


def module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(name: str) -> str:
    """The layer of `service` that a full name belongs to."""
    return name.split(".")[1]


def test_packages() -> None:
    """`batching` and `model_store` import neither each other nor `service`; `shoal` may import all
    packages, and none of them imports `shoal`."""
    for path in MODULES:
        allowed = PACKAGES[path.relative_to(ROOT).parts[0]]
        assert packages(path) & {*PACKAGES, "tests", "benchmarks"} <= allowed, path


def test_layers() -> None:
    """A folder of `service` imports only itself and lower ones."""
    for path in modules("service"):
        name = module(path)
        if name == "service.__init__":
            continue
        for imported in imports(path):
            if imported.startswith("service."):
                above = LAYERS.index(layer(imported)) > LAYERS.index(layer(name))
                assert not above, f"{name} imports {imported}"


def test_folders_of_service() -> None:
    """`service` has at most ten folders and eight files, and CONTRIBUTING.md describes each."""
    entries = [entry for entry in (ROOT / "service").iterdir() if entry.name != "__pycache__"]
    folders = [entry for entry in entries if entry.is_dir()]
    assert len(folders) <= 10 and len(entries) - len(folders) <= 8
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in folders:
        assert f"`service/{folder.name}/`" in text, folder.name


def test_batching_imports_the_standard_library_only() -> None:
    """The batcher can be used in other projects as it is."""
    for path in modules("batching"):
        assert packages(path) <= {*sys.stdlib_module_names, "batching"}, path


def test_no_statement_imports_a_library_of_a_backend() -> None:
    """The libraries may be missing, and take long to import. So `importlib` imports them, in the
    folder of their backend, when they are needed."""
    for path in MODULES:
        assert not set(LIBRARIES) & packages(path), path
        for name in imported_by_call(path):
            folder = LIBRARIES.get(name.partition(".")[0])
            assert folder is None or path.is_relative_to(ROOT / folder), f"{path}: {name}"


def test_backends_do_not_know_each_other() -> None:
    """`model_store.mxnet` and `model_store.onnx` can each be removed without the other."""
    for name, other in ("mxnet", "onnx"), ("onnx", "mxnet"):
        for path in modules(f"model_store/{name}"):
            found = {one for one in imports(path) if one.startswith(f"model_store.{other}")}
            assert not found, path


def test_only_the_command_imports_training() -> None:
    """Only `model_store.training` itself and the command line import `model_store.training`."""
    for path in MODULES:
        inside = path.is_relative_to(ROOT / "model_store" / "training")
        command = path == ROOT / "model_store" / "__main__.py"
        training = any(name.startswith("model_store.training") for name in imports(path))
        assert inside or command or not training, path


def test_only_grpc_imports_grpc() -> None:
    """gRPC is an extra: only `service.grpc` imports it, and only `service.app` imports that."""
    for path in MODULES:
        inside = path.parent == ROOT / "service" / "grpc"
        assert inside or not {"grpc", "google"} & packages(path), path
        used = any(name.startswith("service.grpc") for name in imports(path))
        assert inside or path == ROOT / "service" / "app.py" or not used, path


@pytest.mark.slow
def test_a_server_does_not_load_training() -> None:
    """A process that has imported everything that serves a model has no module of training."""
    code = "import service.__main__, model_store.engine, sys; "
    code += "sys.exit(any(name.startswith('model_store.training') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_a_front_end_does_not_load_backends() -> None:
    """Importing the whole service loads no library of a backend, and no package of the extras
    `grpc` and `otel`."""
    unwanted = {*LIBRARIES, "grpc", "google.protobuf", "opentelemetry.sdk"}
    code = f"import service.__main__, sys; sys.exit(len({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_only_app_builds() -> None:
    """Engines and applications are built in one place."""
    built = {"LaneEngine", "FastAPI", "ModelHost", "EngineServer", "Service"}
    for path in modules("service"):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call)]
        called = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
        assert path == ROOT / "service" / "app.py" or not called & built, path


def test_modules_have_a_test_module_of_their_name() -> None:
    """`package/x/y.py` of more than 100 lines has `tests/package/x/test_y.py`. `__init__` and
    `__main__` are excepted."""
    for path in MODULES:
        name = path.relative_to(ROOT)
        if name.stem in ("__init__", "__main__"):
            continue
        if len(path.read_text().splitlines()) > MAX_UNTESTED_LINES:
            expected = "tests" / name.with_name(f"test_{name.name}")
            assert (ROOT / expected).exists(), f"{name} has no {expected}"
