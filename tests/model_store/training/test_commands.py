"""The commands `evaluate`, `calibrate`, `card` and `export`: versions, arguments and output."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from model_store import backends, manifest
from model_store.__main__ import main
from model_store.training import cifar10, commands
from model_store.training.evaluation import evaluate
from tests.model_store.test_manifest import FULL, GOOD, write

MXNET = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MXNet's own
RECORD = bytes(1 + 3 * 32 * 32)
"""A black airplane in CIFAR-10's format."""


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    """A store of versions 9 and 10, whose manifests cannot be read."""
    for version in ("9", "10"):
        write(tmp_path / "store" / "pets" / version, "{")
    return tmp_path / "store"


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """A data set in CIFAR-10's format with one image in each file."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(RECORD)
    return folder


@pytest.mark.slow  # loads matplotlib and onnx
@pytest.mark.parametrize(
    ("arguments", "version"),
    [
        (["calibrate", "pets", "--data", "."], "10"),
        (["calibrate", "pets/9", "--data", "."], "9"),
        (["card", "pets", "--data", "."], "10"),
        (["card", "pets/9", "--data", "."], "9"),
        (["export", "pets", "--onnx", "net.onnx"], "10"),
        (["export", "pets/9", "--onnx", "net.onnx"], "9"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
def test_commands_use_the_highest_version_by_default(
    store: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    version: str,
) -> None:
    """NAME means the version with the highest number, and NAME/VERSION the one of that number."""
    if arguments[0] == "card":
        pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    if arguments[0] == "export":
        pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    assert main([*arguments, "--store", str(store)]) == 2
    error = capsys.readouterr().err
    assert f"{store / 'pets' / version}/" in error and error.count("\n") == 1


@pytest.mark.slow  # loads MXNet
@MXNET
@pytest.mark.parametrize(("options", "version"), [([], "10"), (["--version", "9"], "9")])
def test_evaluate_uses_the_highest_version_by_default(
    store: pathlib.Path,
    data: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    version: str,
) -> None:
    """`evaluate --name` means the version with the highest number, unless --version is given."""
    options = [*options, "--name", "pets", "--store", str(store), "--data", str(data)]
    assert main(["evaluate", *options]) == 2
    assert f"{store / 'pets' / version}/" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["calibrate", "card", "export"])
@pytest.mark.parametrize("name", ["cats", "../pets/9", "pets/nine"])
def test_commands_reject_unknown_versions(
    store: pathlib.Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    """A name or number that no version has ends with status 2 and one line, and writes nothing."""
    required = ["--onnx", str(store / "net.onnx")] if command == "export" else ["--data", "."]
    assert main([command, name, *required, "--store", str(store)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"python -m model_store {command}: ")
    assert said.err.count("\n") == 1 and not said.out
    assert not (store / "net.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["evaluate"], "--data"),
        (["calibrate", "pets"], "--data"),
        (["calibrate", "--data", "."], "NAME[/VERSION]"),
        (["card", "pets"], "--data"),
        (["export", "pets"], "--onnx"),
        (["evaluate", "--data", ".", "--precision", "fp64"], "fp64"),
        (["evaluate", "--data", ".", "--backend", "torch"], "torch"),
    ],
    ids=" ".join,
)
def test_commands_name_the_argument_that_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], missing: str
) -> None:
    """A missing or unknown argument ends with status 2, and the message names it."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and missing in capsys.readouterr().err


def test_calibrate_overwrites_no_version(
    tmp_path: pathlib.Path, data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that exists in the store of --into is an error, and the version stays as it was."""
    model = manifest.Manifest.model_validate(GOOD | {"classes": cifar10.CLASSES})
    folder = tmp_path / "store" / "pets" / "3"
    folder.mkdir(parents=True)
    manifest.write(folder, model)
    taken = write(tmp_path / "other" / "pets" / "4", "{")
    options = ["--store", str(tmp_path / "store"), "--into", str(tmp_path / "other")]
    options += ["--version", "4", "--data", str(data)]
    assert main(["calibrate", "pets", *options]) == 2
    assert f"{taken} exists" in capsys.readouterr().err
    assert (taken / manifest.MANIFEST).read_text() == "{"


@pytest.mark.slow
@MXNET
def test_calibrate_adds_the_next_version_of_the_store_that_it_writes_to(
    calibrated: pathlib.Path,
    tiny: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With --into, numbers are counted there: 8 follows 7, although the source store has only 1.
    There is one line for each backend and precision."""
    name, into = calibrated.parent.name, tmp_path / "into"
    write(into / name / "7", "{")
    before = sorted(path.name for path in calibrated.parent.iterdir())
    options = ["--store", str(calibrated.parents[1]), "--into", str(into), "--data", str(tiny)]
    options += ["--device", "cpu", "--threads", "1"]
    assert main(["calibrate", f"{name}/1", *options]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"{into / name / '8'}: created from version 1"
    measured = manifest.read(into / name / "8").measured
    assert {one.backend for one in measured} == set(backends.installed())
    for line, one in zip(lines, measured, strict=False):
        assert line.startswith(f"{one.backend} in {one.precision}: accuracy {one.accuracy:.2%} on ")
    assert manifest.read(into / name / "8").derived_from is not None
    assert sorted(path.name for path in calibrated.parent.iterdir()) == before


def test_summary_names_the_most_frequent_mistake_of_each_class() -> None:
    """A class without mistakes has only its accuracy, and one without images says so."""
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 1, 1]]
    labels = np.array([0, 0, 0, 0, 0, 1])
    cat, dog, bird, everything, calibration = commands._summary(
        evaluate(rows, labels, ("cat", "dog", "bird"))
    ).splitlines()
    assert cat.split() == ["cat", "40.00%", "2", "predicted", "as", "dog"]
    assert dog.split() == ["dog", "100.00%"]
    assert bird.split() == ["bird", "no", "image"]
    assert everything.split() == ["all", "50.00%", "of", "6", "images"]
    assert calibration.startswith("calibration error 50.00% (15 bins), negative log likelihood ")


@pytest.mark.slow
@MXNET
def test_evaluate_prints_a_summary(
    calibrated: pathlib.Path, tiny: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json, standard output has the version, the backend, the precision and a line for
    each class."""
    name = calibrated.parent.name
    options = ["--store", str(calibrated.parents[1]), "--version", "1", "--data", str(tiny)]
    assert main(["evaluate", *options, "--threads", "1", "--precision", "fp32"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name} 1 with {backends.installed()[0]} (")
    assert first.endswith("), in fp32 (as requested)")
    assert [line.split()[0] for line in lines] == [*cifar10.CLASSES, "all", "calibration"]


@pytest.mark.slow
@MXNET
def test_card_prints_the_file_that_it_wrote(
    calibrated: pathlib.Path,
    tiny: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The card lies beside the manifest of the version; without --photos no service is asked."""
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    folder = tmp_path / calibrated.parent.name / "1"
    folder.mkdir(parents=True)
    for file in calibrated.iterdir():
        (folder / file.name).symlink_to(file)
    options = ["--store", str(tmp_path), "--data", str(tiny), "--url", "http://127.0.0.1:9"]
    options += ["--device", "cpu", "--threads", "1"]
    assert main(["card", folder.parent.name, *options]) == 0
    assert capsys.readouterr().out == f"{folder / 'MODEL_CARD.md'}\n"
    assert (folder / "MODEL_CARD.md").read_text().startswith("#")


@pytest.mark.slow
@MXNET
@pytest.mark.parametrize("backend", backends.installed())
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_evaluate_writes_json_and_a_picture(
    calibrated: pathlib.Path,
    tiny: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    backend: str,
) -> None:
    """`evaluate` measures the figures of the manifest, and writes all of them as JSON."""
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    options = ["--data", str(tiny), "--store", str(calibrated.parents[1]), "--version", "1"]
    options += ["--threads", "1", "--precision", precision, "--backend", backend]
    written, picture = tmp_path / "found.json", tmp_path / "found.png"
    more = ["--json", str(written), "--picture", str(picture)]
    assert main(["evaluate", *options, *more]) == 0
    line = f"with {backend} (as requested), in {precision} (as requested"
    assert line in capsys.readouterr().out
    found = json.loads(written.read_text())
    assert (found["backend"], found["backend_reason"]) == (backend, "as requested")
    (measured,) = [
        one
        for one in manifest.read(calibrated).measured
        if (one.backend, one.precision) == (backend, precision)
    ]
    assert found["accuracy"] == measured.accuracy
    assert round(found["negative_log_likelihood"], 4) == measured.negative_log_likelihood
    assert (found["name"], found["version"]) == ("cifar_resnet20_v1", "1")
    assert sum(map(sum, found["confusion"])) == sum(b["images"] for b in found["reliability"]) == 16
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@MXNET
def test_evaluate_writes_json_to_standard_output(
    calibrated: pathlib.Path, tiny: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--json -`, standard output has only the JSON."""
    options = ["--data", str(tiny), "--store", str(calibrated.parents[1]), "--version", "1"]
    options += ["--threads", "1", "--precision", "fp32"]
    assert main(["evaluate", *options, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(map(sum, found["confusion"])) == 16


def test_onnx_files_names_the_files_or_what_to_install() -> None:
    """The line is the same after `import`, `calibrate` and `train`."""
    with_files = manifest.Manifest.model_validate(FULL)
    names = [one.file for one in with_files.onnx.values()]
    assert commands.onnx_files(with_files) == f"ONNX files: {', '.join(names)}"
    assert "shoal[export]" in commands.onnx_files(manifest.Manifest.model_validate(GOOD))
