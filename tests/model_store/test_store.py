"""The store: importing a network on the command line, and verifying versions."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from model_store import backends, manifest
from model_store.__main__ import main
from model_store.params import read_params, write_params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MXNet's own
]
ROOT = pathlib.Path(__file__).parents[2]
ANIMALS = [f"animal {number}" for number in range(10)]


def run(*arguments: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_store", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def run_here(
    capsys: pytest.CaptureFixture[str], *arguments: str | pathlib.Path
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process."""
    command = [*map(str, arguments)]
    status = main(command)
    said = capsys.readouterr()
    return subprocess.CompletedProcess(command, status, said.out, said.err)


@pytest.fixture
def params(model: pathlib.Path) -> pathlib.Path:
    return model / "net.params"


def test_import_adds_a_version(
    params: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file becomes a version with its own classes, which can be verified."""
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(ANIMALS) + "\n")
    done = run("import", params, "--store", tmp_path, "--name", "zoo", "--classes", labels)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "ONNX files" in first
    assert last.endswith(f"serve it with SHOAL_MODEL_STORE={tmp_path} SHOAL_MODEL=zoo")
    imported = manifest.read(tmp_path / "zoo" / "1")
    assert imported.classes == tuple(ANIMALS)
    assert (tmp_path / "zoo" / "1" / "net.params").read_bytes() == params.read_bytes()

    listed = run_here(capsys, "list", "--store", tmp_path)
    assert listed.stdout.startswith("zoo 1: 10 classes, accuracy not measured; mxnet: fp32")
    assert run_here(capsys, "verify", "--store", tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arch", "cifar_resnet56_v1"], "missing"),
        (["--arch", "resnet50"], "cifar_resnet20_v1"),
        (["--classes", "pyproject.toml"], "same name"),
        (["--classes", "nowhere.txt"], "nowhere.txt"),
        (["--version", "latest"], "version"),
        (["--std", "0", "1", "1"], "std"),
        (["--name", "../escaped/zoo"], "name"),
        (["--version", "../2"], "version"),
    ],
)
def test_import_rejects_what_does_not_fit(
    params: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    """One line says what does not fit. No folder remains, not even that of the store."""
    into = ("--store", tmp_path / "new" / "store", "--name", "zoo")
    failed = run_here(capsys, "import", params, *into, *more)
    assert failed.returncode == 2
    assert message in failed.stderr and failed.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_import_rejects_a_missing_file(tmp_path: pathlib.Path) -> None:
    """A missing file is an error in one line."""
    (tmp_path / "net.params").write_bytes(b"\x80\x04pickle")
    failed = run("import", tmp_path / "net.params", "--store", tmp_path)
    assert failed.returncode == 2 and "pickle" in failed.stderr


def test_verify_finds_damage(
    model: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed weights are reported, and so are the results of the versions after them."""
    for version in ("1", "2", "3"):
        copy = pathlib.Path(shutil.copytree(model, tmp_path / "cifar_resnet20_v1" / version))
        described = json.loads((copy / manifest.MANIFEST).read_text()) | {"version": version}
        (copy / manifest.MANIFEST).write_text(json.dumps(described))
    for version in ("1", "3"):
        path = tmp_path / "cifar_resnet20_v1" / version / "net.params"
        write_params(path, {name: array + 1 for name, array in read_params(path).items()})

    verified = run("verify", "--store", tmp_path)
    assert verified.returncode == 1
    assert [line.partition(" is not ")[0] for line in verified.stderr.splitlines()] == [
        f"python -m model_store verify: cifar_resnet20_v1 {version}: "
        f"{tmp_path}/cifar_resnet20_v1/{version}/net.params"
        for version in ("1", "3")
    ]
    assert verified.stderr.count("SHA-256") == 2
    names = " and ".join(backends.installed())
    good = f"cifar_resnet20_v1 2: matches its manifest and can be served with {names}\n"
    assert verified.stdout == good

    only = ("--name", "cifar_resnet20_v1", "--version", "2")
    one = run_here(capsys, "verify", "--store", tmp_path, *only)
    assert (one.returncode, one.stdout, one.stderr) == (0, good, "")
