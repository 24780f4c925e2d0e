"""The command line: an error is one line and an exit status."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from model_store import manifest, versions
from model_store.__main__ import main
from model_store.params import write_params
from tests.model_store.test_manifest import FULL, GOOD, write


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    """A store with a good version between two bad ones."""
    write(tmp_path / "cats" / "1", "{")
    with versions.adding(tmp_path, "pets", "3") as partial:
        manifest.write(partial, manifest.Manifest.model_validate(GOOD))
    write(tmp_path / "pets" / "4", (tmp_path / "pets/3/manifest.json").read_text())
    return tmp_path


def test_list_continues_after_a_bad_version(
    store: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad version does not hide the others."""
    assert main(["list", "--store", str(store)]) == 1
    said = capsys.readouterr()
    about = "2 classes, accuracy not measured; mxnet: fp32, fp16; onnxruntime: no files"
    assert said.out == f"pets 3: {about}\n"
    bad = [line.split(": ")[:2] for line in said.err.splitlines()]
    assert bad == [["python -m model_store list", version] for version in ("cats 1", "pets 4")]


@pytest.mark.slow  # loads MXNet
def test_verify_continues_after_a_bad_version(
    store: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every bad version gets a line, including one without parameters."""
    assert main(["verify", "--store", str(store)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    bad = [line.split(": ")[1] for line in said.err.splitlines()]
    assert bad == ["cats 1", "pets 3", "pets 4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "pets"], ["pets 3", "pets 4"]),
        (["--name", "pets", "--version", "4"], ["pets 4"]),
    ],
)
def test_verify_selects_by_name_and_version(
    store: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: list[str],
) -> None:
    """Other versions are not verified."""
    assert main(["verify", "--store", str(store), *options]) == 1
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == message


def test_verify_fails_without_a_matching_version(
    store: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelled name or store is an error."""
    assert main(["verify", "--store", str(store), "--name", "pest"]) == 2
    assert "pets 3" in capsys.readouterr().err
    assert main(["verify", "--store", str(store / "nowhere")]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store", "{tmp}/file"], "{tmp}/file"),
        (["--store", "{tmp}/file/store"], "{tmp}/file/store"),
        (["--store", "{tmp}/store", "--classes", "{tmp}"], "{tmp}: cannot be read"),
        (["--store", "{tmp}/store", "--classes", "{tmp}/file/labels"], "labels"),
    ],
)
def test_import_reports_file_errors_in_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """A store that cannot be written, or labels that cannot be read: one line that names the
    path."""
    (tmp_path / "file").touch()
    write_params(tmp_path / "net.params", {"weight": np.ones(1, dtype=np.float32)})
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["import", str(tmp_path / "net.params"), *options]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error and error.count("\n") == 1


def test_train_without_its_extra_says_what_to_install(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before an epoch is trained."""
    drawing = ("model_store.training.job", "model_store.training.plots")
    for name in [*sys.modules]:
        if name.partition(".")[0] == "matplotlib" or name in drawing:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["train", "--data", str(tmp_path), "--store", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "matplotlib" in error and "shoal[train]" in error and error.count("\n") == 1


def test_train_without_mxnet_says_what_to_install(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the data is read."""
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "--data", str(tmp_path), "--store", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "training needs MXNet" in error and "shoal[cpu]" in error and error.count("\n") == 1


def test_list_names_the_files_of_each_backend(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The precisions of MXNet come from the parameters and the ranges, those of ONNX Runtime from
    its files."""
    model = manifest.Manifest.model_validate(FULL)
    with versions.adding(tmp_path, model.name, model.version) as partial:
        manifest.write(partial, model)
    assert main(["list", "--store", str(tmp_path)]) == 0
    onnx = [name for name in ("fp32", "int8", "fp16") if name in model.onnx]
    end = f"mxnet: fp32, int8, fp16; onnxruntime: {', '.join(onnx)}\n"
    assert capsys.readouterr().out.endswith(end)
