"""The environment in which the GPU is checked: wheels in pieces, and their installation."""

from __future__ import annotations

import pathlib
import subprocess
import zipfile

import pytest

from benchmarks.check_gpu import install, join, main


def wheel(
    folder: pathlib.Path, name: str, tag: str = "py3-none-any", text: str = ""
) -> pathlib.Path:
    """Makes a wheel with one module."""
    path = folder / f"{name}-1.0-{tag}.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"text = {text!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def test_join_joins_the_pieces_in_order(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of several wheels. Whole wheels are listed, too."""
    whole = folder / "c-1.0-py3-none-any.whl"
    whole.write_bytes(b"c")
    for number in (2, 0, 1):
        (folder / f"a-1.0-py3-none-any.whl.0{number}").write_bytes(b"a%d" % number)
        (folder / f"b-1.0-py3-none-any.whl.0{number}").write_bytes(b"b%d" % number)
    (folder / "README").touch()
    wheels = join(folder, tmp_path)
    assert {path.name[0]: path.read_bytes() for path in wheels} == {
        "a": b"a0a1a2",
        "b": b"b0b1b2",
        "c": b"c",
    }
    assert whole in wheels


@pytest.mark.slow
def test_install_takes_the_wheels_that_fit(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Without a package index. Other packages come from the Python that runs the program."""
    wheels = [
        wheel(folder, "shoal_check_a", text="fits"),
        wheel(folder, "shoal_check_b", "cp39-cp39-manylinux2014_x86_64", "does not fit"),
        wheel(folder, "shoal_check_b", text="fits"),
        wheel(folder, "numpy", text="the wheel"),
    ]
    python = install(wheels, tmp_path / "environment")
    code = "import shoal_check_a, shoal_check_b, numpy, pydantic; print(shoal_check_a.text, "
    code += "shoal_check_b.text, numpy.text)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("fits fits the wheel\n", "")


def test_main_needs_wheels(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without wheels is an error."""
    assert main(["--wheels", str(folder)]) == 2
    assert "contains no wheels" in capsys.readouterr().err
