"""What an image costs in int8 and in fp32, by bucket: CPU seconds, in interleaved rounds.

    python -m benchmarks.precision cifar_resnet20_v1/2 --store model_store/models

Both engines live in this process, each on its own thread and one OpenMP thread, and take turns:
whatever else the machine does meets both alike, and CPU seconds do not count what others use. The
medians of the rounds are compared. Whole `infer` is counted: normalisation, the copy to MXNet, the
network, the softmax. `--json FILE` writes the figures down.
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
from model_store.engine import GluonEngine, load_engine
from model_store.precision import INT8_FLAGS, cpu_flags

PRECISIONS = ("fp32", "int8")


async def measure(folder: pathlib.Path, rounds: int, batches: int) -> dict[int, dict[str, float]]:
    """Bucket -> precision -> median CPU seconds an image."""
    async with (
        load_engine(folder, "cpu", 1, 64, "fp32") as whole,
        load_engine(folder, "cpu", 1, 64, "int8") as less,
    ):
        engines = dict(zip(PRECISIONS, (whole, less), strict=True))
        return {
            bucket: await _measure(engines, bucket, rounds, batches)
            for bucket in whole.warm_up_seconds
        }


async def _measure(
    engines: dict[str, GluonEngine], bucket: int, rounds: int, batches: int
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", metavar="NAME/VERSION", help="one that is calibrated for int8")
    parser.add_argument("--store", type=pathlib.Path, default=manifest.STORE)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batches", type=int, default=10, help="in a round, of each precision")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    name, _, version = options.model.partition("/")
    folder = versions.folder(options.store, name, version)
    found = asyncio.run(measure(folder, options.rounds, options.batches))
    has = [flag for flag in INT8_FLAGS if flag in cpu_flags()]
    print(f"{options.model} on a CPU with {', '.join(has) or 'none of ' + ', '.join(INT8_FLAGS)}")
    print("images together   fp32 images/CPU s   int8 images/CPU s   int8 is")
    for bucket, seconds in found.items():
        whole, less = seconds["fp32"], seconds["int8"]
        print(f"{bucket:15}   {1 / whole:17,.0f}   {1 / less:17,.0f}   {whole / less:.2f} x")
    if options.json is not None:
        options.json.write_text(json.dumps({"flags": has, "seconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
