"""An installation without extras has the client and the command, but no server."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SERVER = (
    "fastapi",
    "fastapi_offline",
    "numpy",
    "opentelemetry",
    "orjson",
    "PIL",
    "prometheus_client",
    "python_multipart",
    "simplejpeg",
    "starlette",
    "uvicorn",
)
"""Modules that only the extra `server` installs. A test of pyproject.toml compares."""


def shoal(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `shoal` in a process that cannot import the modules in `SERVER`."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({SERVER})); "
        "from shoal.command import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "predict", "bench", "completion"])
def test_without_extras_help_works(command: str) -> None:
    """The help of these commands needs no package of a server."""
    done = shoal(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"shoal {command}" in done.stdout


@pytest.mark.slow
def test_without_extras_completion_omits_the_models() -> None:
    """Completion knows the flags of commands that can be imported."""
    done = shoal("completion", "bash")
    assert done.returncode == 0, done.stderr
    assert "--find-max" in done.stdout and "calibrate" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["serve"], ["predict", "a.png"], ["models", "list"]])
def test_without_extras_a_server_names_the_extras(arguments: list[str]) -> None:
    """A command that needs a server ends with one line that names the extras."""
    done = shoal(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"shoal {arguments[0]}: the package ")
    assert line.endswith("Install Shoal with one of the extras cpu, gpu, onnx or onnx-gpu")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--images", "samples"]])
def test_without_extras_bench_needs_a_folder_of_images(options: list[str]) -> None:
    """`shoal bench` can send images of a folder, but cannot generate images."""
    done = shoal("bench", "http://127.0.0.1:1/predict", "--rate", "1", *options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert ("does not respond" if options else "--images") in line


@pytest.mark.slow
def test_without_extras_predict_asks_a_server() -> None:
    """`shoal predict --url` needs no package of a server."""
    done = shoal("predict", "samples/ship.jpg", "--url", "http://127.0.0.1:1", "--timeout", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("shoal predict: ") and "not installed" not in done.stderr
