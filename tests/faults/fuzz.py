"""Fuzzes the code that parses untrusted data, guided by coverage.

    python -m tests.faults.fuzz --seconds 60 --seeds FOLDER --corpus FOLDER [decode form ...]

Targets are decoding, forms, `.params` and `.onnx` files, and the frames between processes. The
corpus starts with the seeds and the data of the tests, and grows in its folder, which must be
outside the repository. The exit status is 1 if an input breaks a target; its file is named.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys

from service.workers import frames
from tests.e2e.process import ROOT
from tests.fakes import MODEL
from tests.model_store.fuzz_params import sound_files
from tests.model_store.onnx import fuzz_onnx
from tests.service import synthetic

TARGETS = ("decode", "form", "params", "onnx", "frames")
EXECUTED = re.compile(r"stat::number_of_executed_units: +(\d+)")
MAX_SECONDS = 25
"""Maximum seconds for one input."""
MAX_MEGABYTES = 2048
"""Maximum memory of the process."""


def seeds(target: str) -> list[bytes]:
    """Returns the small inputs that the tests use."""
    if target == "params":
        return sound_files()
    if target == "onnx":
        return fuzz_onnx.sound_files()
    if target == "frames":
        return [bytes([size]) + stream for size in (0, 6, 255) for stream in streams()]
    pictures = [*synthetic.served().values(), *synthetic.bombs().values()]
    small = [data for data in pictures if len(data) < 10_000]
    if target == "decode":
        return small
    part = b'--b\r\nContent-Disposition: form-data; name="img"; filename="a"\r\n\r\n'
    return [b"\x20b\n" + part + data + b"\r\n--b--\r\n" for data in [b"", b"x", *small[:3]]]


def streams() -> list[bytes]:
    """Returns a valid frame of each kind, and all of them joined."""
    model = MODEL.model_dump(mode="json")
    started = {"model": model, "device": "cpu", "device_reason": "", "precision": "fp32"}
    sound = [
        frames.submit(1, 1e9, bytes(frames.IMAGE_BYTES)),
        frames.cancel(1),
        *(
            frames.message(frames.CALL, 2, {"do": do, "name": "fake", "version": None})
            for do in ("figures", "load", "unload", "reload", "index")
        ),
        frames.message(frames.MODEL, 1, model),
        frames.answer(1, frames.Answer(0.1, 1, 1, 1, bytes(40))),
        frames.error(1, frames.Error(1, 0.5, "full")),
        frames.message(frames.RESULT, 2, {"result": None}),
        frames.message(
            frames.STATE,
            0,
            {
                "started": started
                | {"precision_reason": ""}
                | {"backend": "mxnet", "backend_reason": ""},
                "unloaded": False,
            },
        ),
    ]
    return [*sound, b"".join(sound)]


def fuzz(target: str, corpus: pathlib.Path, more: pathlib.Path | None, seconds: int) -> int | None:
    """Returns the number of executions. None: an input broke the target."""
    finds = corpus / "finds"
    own = corpus / target
    given = corpus / "seeds" / target
    for folder in (own, given, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (given / f"{number}").write_bytes(data)
    folders = [own, given, *([more] if more and target == "decode" else [])]
    command = [sys.executable, "-m", "tests.faults.fuzz_target", target, *map(str, folders)]
    command += [
        f"-max_total_time={seconds}",
        f"-timeout={MAX_SECONDS}",
        f"-rss_limit_mb={MAX_MEGABYTES}",
    ]
    command += ["-print_final_stats=1", "-max_len=20000", f"-artifact_prefix={finds}/{target}-"]
    environment = {**os.environ, "TMPDIR": os.fspath(given.parent)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    executed = EXECUTED.search(run.stderr)
    if run.returncode or executed is None:
        print(run.stderr[-4000:], file=sys.stderr)
        return None
    return int(executed[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the code that parses untrusted data.")
    parser.add_argument("--seconds", type=int, default=60, help="seconds for each target")
    parser.add_argument("--corpus", type=pathlib.Path, required=True, help="folder of the corpus")
    parser.add_argument(
        "--seeds", type=pathlib.Path, help="folder of additional images to start with"
    )
    parser.add_argument("targets", nargs="*", default=TARGETS, metavar="TARGET", help=str(TARGETS))
    options = parser.parse_args()
    corpus: pathlib.Path = options.corpus.resolve()
    if corpus.is_relative_to(ROOT):
        parser.error("the corpus must be outside the repository. Name another folder")
    if unknown := {*options.targets} - {*TARGETS}:
        parser.error(
            f"unknown target: {', '.join(sorted(unknown))}. Targets are {', '.join(TARGETS)}"
        )
    found = False
    for target in options.targets:
        executions = fuzz(target, corpus, options.seeds, options.seconds)
        kept = len([*(corpus / target).iterdir()])
        if executions is None:
            found = True
            print(f"{target:8} FOUND something: {corpus / 'finds'}")
        else:
            print(f"{target:8} {executions:>12,} executions, no find, corpus of {kept:,}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
