"""The command line: help, arguments and exit statuses."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tomllib

import pytest

from service.app import create_app
from service.settings import Settings
from shoal import __version__
from shoal.command import COMMANDS, main

ROOT = pathlib.Path(__file__).parents[2]


def test_command_help_imports_no_slow_module() -> None:
    """`shoal --help` lists all commands without importing the modules that are slow to import."""
    code = (
        "import sys; from shoal.command import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    slow = {"mxnet", "numpy", "httpx", "pydantic", "fastapi", "asyncio", "tqdm", "shtab"}
    assert done.returncode == 0
    assert not slow & set(done.stderr.split())
    assert all(f"\n    {name}" in done.stdout for name in COMMANDS)
    assert "exit status:" in done.stdout and "shoal predict horse.jpg *.png" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of every command has at least two examples."""
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count(f"    shoal {name}") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sevre"], "invalid choice: 'sevre'"),
        (["predict"], "FILE"),
        (["predict", "a.png", "--url", "localhost:8000"], "http://HOST:PORT"),
        (["predict", "a.png", "--timeout", "0"], "more than 0 and at most 3600"),
        (["predict", "a.png", "--model", "../pets"], "--model"),
        (["bench"], "--rate"),
        (["bench", "localhost", "--rate", "1"], "http://HOST:PORT/predict"),
        (["bench", "--rate", "1,0"], "--rate"),
        (["bench", "--rate", "1", "--images", "nowhere"], "nowhere is not a folder"),
        (["serve", "--por", "99999"], "unrecognized arguments: --por"),  # no abbreviations
        (["models"], "COMMAND"),
        (["completion", "csh"], "bash"),
    ],
    ids=" ".join,
)
def test_command_rejects_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument ends with status 2 and a message that names it."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_models_reports_errors_under_its_own_name(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """`shoal models` does what `python -m model_store` does, and its errors say `shoal models`."""
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("cifar_resnet20_v1 1: 10 classes")
    assert main(["models", "verify", "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("shoal models verify: no model in")


def test_version_is_the_same_everywhere() -> None:
    """The command, the service and the distribution have the same version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ == create_app(Settings()).version
    assert project["scripts"] == {"shoal": "shoal.command:main"}
