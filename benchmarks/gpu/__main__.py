"""Checks and measures ONNX Runtime on a GPU, and prints a table.

    python -m benchmarks.gpu --json FILE

Without a GPU, the same is done on the CPU as far as possible, and the report says so. The exit
status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu import computing, faults
from benchmarks.gpu.report import described, failed, table
from benchmarks.gpu.subject import blocks, cifar, prepare
from model_store import versions
from model_store.manifest import STORE

MODEL = "cifar_resnet20_v1"
COUNTS = "1,4,8"


def checks(options: argparse.Namespace, scratch: pathlib.Path) -> dict[str, Any]:
    """Runs all checks. An error ends only the check in which it was raised."""
    subject = prepare(
        versions.folder(STORE, MODEL, versions.latest(STORE, MODEL)), options.device, scratch
    )
    pixels, labels = blocks(options.images), None
    if options.cifar is not None:
        pixels, labels = cifar(options.cifar, options.images)
    results: dict[str, Any] = {"machine": described(subject)}
    print(results["machine"]["device"], flush=True)

    def requests() -> Any:
        from benchmarks.gpu import serving  # needs the packages of the server

        counts = [int(count) for count in options.workers.split(",")]
        return serving.requests(subject, counts, 2 * options.seconds)

    steps: dict[str, Callable[[], Any]] = {
        "answers": lambda: computing.answers(subject, pixels, labels),
        "latency": lambda: computing.latency(subject, options.seconds / 4),
        "variants": lambda: computing.variants(subject, options.seconds / 4),
        "throughput": lambda: computing.throughput(subject, options.seconds),
        "out_of_memory": lambda: faults.out_of_memory(subject),
        "recovery": lambda: faults.recovery(subject),
        "lost": lambda: faults.lost(subject),
        "requests": requests,
    }
    for name, step in steps.items():
        began = time.perf_counter()
        try:
            results[name] = step()
        except Exception as error:  # noqa: BLE001  # the other checks go on
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        results[name]["seconds"] = round(time.perf_counter() - began, 1)
        print(f"{name}: {results[name]['seconds']} s", flush=True)
        if options.json:  # also if a later check is ended from outside
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=pathlib.Path, help="file for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N")
    parser.add_argument("--images", type=int, default=5000, help="number of images to compare")
    parser.add_argument("--cifar", type=pathlib.Path, help="test_batch.bin; default: made images")
    parser.add_argument("--workers", default=COUNTS, help="numbers of front ends")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measurement")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as scratch:
        results = checks(options, pathlib.Path(scratch))
    print(table(results))
    return 1 if failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
