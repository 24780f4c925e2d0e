"""Measures the CPU time per image in int8 and fp32, for each batch size.

    python -m benchmarks.precision cifar_resnet20_v1/2 --store model_store/models

The program loads one engine for each precision. Each engine has one lane (a thread that runs one
batch at a time) and one OpenMP thread. In each round, the engines run batches one after the other,
so that other work on the machine affects both equally. The results are medians of the rounds. The
program measures the CPU time of `infer`. This function normalizes the images, copies them to MXNet,
runs the neural network and computes the softmax. With `--json FILE`, the results are also written
to a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import time

import numpy as np

from model_store import manifest, versions
from model_store.engine import LaneEngine, load_engine
from model_store.precision import INT8_FLAGS, cpu_flags

PRECISIONS = ("fp32", "int8")


async def measure(folder: pathlib.Path, rounds: int, batches: int) -> dict[int, dict[str, float]]:
    """Measures a version. Returns median CPU seconds per image, by batch size and precision.

    Args:
        folder: Folder of the version.
        rounds: Number of rounds.
        batches: Number of batches of each precision in a round.
    """
    async with (
        load_engine(folder, "cpu", 1, 64, "fp32") as fp32,
        load_engine(folder, "cpu", 1, 64, "int8") as int8,
    ):
        engines = dict(zip(PRECISIONS, (fp32, int8), strict=True))
        return {
            bucket: await _measure(engines, bucket, rounds, batches)
            for bucket in fp32.warm_up_seconds
        }


async def _measure(
    engines: dict[str, LaneEngine], bucket: int, rounds: int, batches: int
) -> dict[str, float]:
    images = list(np.random.default_rng(1).integers(0, 256, (bucket, 32, 32, 3), dtype=np.uint8))
    spent: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            started = time.process_time()
            for _ in range(batches):
                await engine.infer(images)
            spent[name].append((time.process_time() - started) / batches / bucket)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def main() -> None:
    """Measures one version and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="NAME/VERSION", help="version that is calibrated for int8")
    parser.add_argument(
        "--store",
        type=pathlib.Path,
        default=manifest.STORE,
        help="folder of the model store (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=25, help="number of rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--batches",
        type=int,
        default=10,
        help="number of batches of each precision in a round (default: %(default)s)",
    )
    parser.add_argument("--json", type=pathlib.Path, help="path of a JSON file for the results")
    options = parser.parse_args()
    name, _, version = options.model.partition("/")
    folder = versions.folder(options.store, name, version)
    results = asyncio.run(measure(folder, options.rounds, options.batches))
    flags = [flag for flag in INT8_FLAGS if flag in cpu_flags()]
    print(f"{options.model} on a CPU with {', '.join(flags) or 'none of ' + ', '.join(INT8_FLAGS)}")
    print("     batch size   fp32 images/CPU s   int8 images/CPU s   speedup")
    for bucket, seconds in results.items():
        fp32, int8 = seconds["fp32"], seconds["int8"]
        print(f"{bucket:15}   {1 / fp32:17,.0f}   {1 / int8:17,.0f}   {fp32 / int8:.2f} x")
    if options.json is not None:
        options.json.write_text(json.dumps({"flags": flags, "seconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
