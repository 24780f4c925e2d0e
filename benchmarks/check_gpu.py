"""Checks ONNX Runtime on this machine's GPU, without a package index.

    python3 benchmarks/check_gpu.py --wheels FOLDER

The program installs the wheels in FOLDER into a temporary environment, and runs `benchmarks.gpu` in
it. Packages that FOLDER lacks are taken from the environment of the Python that runs the program.
A wheel may be in pieces: `NAME.whl.00`, `NAME.whl.01` and so on. Other arguments are those of
`benchmarks.gpu`. This program uses the standard library only.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent


def join(folder: pathlib.Path, target: pathlib.Path) -> list[pathlib.Path]:
    """Joins the wheels that are in pieces.

    Args:
        folder: Folder with wheels and pieces of wheels.
        target: Folder for the joined wheels.

    Returns:
        All wheels, of both folders.
    """
    joined: set[pathlib.Path] = set()
    for piece in sorted(folder.glob("*.whl.*")):
        wheel = target / piece.stem
        with piece.open("rb") as source, wheel.open("ab" if wheel in joined else "wb") as file:
            shutil.copyfileobj(source, file)
        joined.add(wheel)
    return sorted([*folder.glob("*.whl"), *joined])


def install(wheels: Sequence[pathlib.Path], environment: pathlib.Path) -> pathlib.Path:
    """Installs wheels into a new environment, and returns the path of its Python.

    Of wheels of the same package, pip chooses one that fits this Python.

    Args:
        wheels: Paths of the wheels.
        environment: Folder of the environment, which is created.
    """
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    site = sysconfig.get_path("purelib", "venv", {"base": str(environment)})
    # The environment's own packages come first.
    (pathlib.Path(site) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--target", site]
    for folder in {wheel.parent for wheel in wheels}:
        command += ["--find-links", str(folder)]
    names = {wheel.name.partition("-")[0] for wheel in wheels}
    subprocess.run([*command, *sorted(names)], check=True)
    return python


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, add_help=False)
    parser.add_argument("--wheels", type=pathlib.Path, metavar="FOLDER")
    options, others = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as scratch:
        python = pathlib.Path(sys.executable)
        if options.wheels is not None:
            wheels = join(options.wheels, pathlib.Path(scratch))
            if not wheels:
                print(f"{options.wheels} contains no wheels", file=sys.stderr)
                return 2
            python = install(wheels, pathlib.Path(scratch) / "environment")
        command = [str(python), "-m", "benchmarks.gpu", *others]
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=ROOT, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
