"""The command line: what it knows, what it says, and how soon."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tomllib

import pytest

from service.app import create_app
from service.settings import Settings
from shoal import __version__
from shoal.command import COMMANDS, main, parser

ROOT = pathlib.Path(__file__).parents[2]


def test_help_at_once() -> None:
    """Whatever takes long is imported by the command that wants it."""
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
def test_every_command_teaches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With examples, of itself."""
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count(f"    shoal {name}") >= 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["sevre"], "invalid choice: 'sevre'"),
        (["predict"], "FILE"),
        (["predict", "a.png", "--url", "localhost:8000"], "http://HOST:PORT"),
        (["predict", "a.png", "--timeout", "0"], "between 0 and 3600"),
        (["predict", "a.png", "--model", "../pets"], "--model"),
        (["bench"], "--rate"),
        (["bench", "localhost", "--rate", "1"], "http://HOST:PORT/predict"),
        (["bench", "--rate", "1,0"], "--rate"),
        (["bench", "--rate", "1", "--images", "nowhere"], "nowhere is no folder"),
        (["serve", "--por", "99999"], "unrecognized arguments: --por"),  # no abbreviations
        (["models"], "COMMAND"),
        (["completion", "csh"], "bash"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """End with 2, and say which."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and told in capsys.readouterr().err


def test_a_server_has_its_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that would have no effect are not passed over."""
    assert main(["predict", "a.png", "--url", "http://127.0.0.1:9", "--model", "pets"]) == 2
    assert "--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://shoal:80", "http://shoal:80/predict"),
        ("http://shoal/", "http://shoal/predict"),
        ("https://shoal/v1/predict?x=1", "https://shoal/v1/predict?x=1"),
    ],
)
def test_where_the_load_goes(url: str, asked: str) -> None:
    """To /predict, unless another path is named."""
    assert parser({"bench"}).parse_args(["bench", url, "--rate", "1"]).url == asked


def test_models_by_either_name(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """`shoal models` is `python -m model_store`, and complains under its own name."""
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("cifar_resnet20_v1 1: 10 classes")
    assert main(["models", "verify", "--store", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("shoal models verify: no model in")


def test_one_version() -> None:
    """The command, the service and the distribution have the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__ == create_app(Settings()).version
    assert project["scripts"] == {"shoal": "shoal.command:main"}
