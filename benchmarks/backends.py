"""Compares all installed backends as they are served, in fp32 and int8.

    python -m benchmarks.backends
    python -m benchmarks.backends pets/2 --store models --rounds 40 --data cifar-10-batches-bin

The program loads one engine for each backend and precision, for ONNX Runtime in int8 with and
without OpenVINO. An engine has one lane (a thread that runs one batch at a time) and one CPU
thread. In each round, the engines run batches one after the other, so that other work on the
machine affects all of them equally. The measured time is the CPU time of all threads during
`infer`, which assembles the images, runs the network and computes the softmax. Ratios are computed
within a round; their standard errors are in brackets.

The start and the memory of each engine are measured in a process of its own. With --data, the
answers to CIFAR-10's test images are compared with those of the first backend in fp32, and of the
NumPy reference in tests/reference.py. The results are written to backends.md and backends.json.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict

import numpy as np

from benchmarks.answers import Answers, compare
from benchmarks.ratios import Ratio
from benchmarks.report import machine
from benchmarks.served import Served, Start, all_served, openvino_hidden, start
from model_store import manifest, versions
from model_store.engine import LaneEngine, load_engine
from model_store.training import cifar10

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("mxnet", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")
SIZES = (1, 2, 4, 8, 16, 32, 64)
IMAGES = 128
"""Number of images that each engine computes in a turn."""


async def measure(
    folder: pathlib.Path,
    served: Sequence[Served],
    sizes: Sequence[int],
    rounds: int,
    test: cifar10.Split | None,
) -> tuple[dict[Served, dict[int, list[float]]], dict[Served, Answers]]:
    """Load all engines in this process and measure them.

    Args:
        folder: Folder of the version.
        served: What to measure.
        sizes: Batch sizes.
        rounds: Number of rounds.
        test: Labeled images. None: answers are not compared.

    Returns:
        Images per CPU second by batch size, one number for each round; and the answers.
    """
    async with AsyncExitStack() as stack:
        engines = {}
        for one in served:
            with openvino_hidden(not one.openvino):
                engines[one] = await stack.enter_async_context(
                    load_engine(folder, "cpu", 1, max(sizes), one.precision, 1, one.backend)
                )
        rates = {one: {size: [await _rate(engines[one], size)] for size in sizes} for one in served}
        for _ in range(rounds - 1):
            for size in sizes:
                for one, engine in engines.items():
                    rates[one][size].append(await _rate(engine, size))
        answers = {} if test is None else await compare(folder, engines, test)
        return rates, answers


async def _rate(engine: LaneEngine, size: int) -> float:
    """Return the number of images per CPU second in batches of `size`."""
    images = list(np.random.default_rng(1).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8))
    batches = max(1, IMAGES // size)
    started = time.process_time()
    for _ in range(batches):
        await engine.infer(images)
    return batches * size / (time.process_time() - started)


def table(
    rates: Mapping[Served, Mapping[int, Sequence[float]]],
    starts: Mapping[Served, Start],
    answers: Mapping[Served, Answers],
) -> str:
    """Return a Markdown table. Cells of batch sizes have the median, the ratio and its error."""
    sizes = list(next(iter(rates.values())))
    columns = [f"batch {size}" for size in sizes]
    columns += ["ready, s", "ready, CPU s", "RSS, MB"]
    if answers:
        count = next(iter(answers.values())).images
        columns += [
            f"top-1 of {count:,}, %",
            f"same class as {next(iter(answers))}, %",
            "largest difference in a probability",
            "same class as NumPy, %",
            "largest difference to NumPy",
        ]
    rows = [f"| images per CPU second | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for one, by_size in rates.items():
        ratios = compared(rates, one)
        cells = [
            f"{statistics.median(by_size[size]):,.0f}, "
            f"{ratios[size].mean:.2f} ({ratios[size].error:.2f})"
            for size in sizes
        ]
        began = starts[one]
        cells += [f"{began.seconds:.2f}", f"{began.cpu:.2f}", f"{began.memory:.0f}"]
        if answers:
            own = answers[one]
            cells += [
                f"{own.accuracy:.2%}"[:-1],
                f"{own.same_class:.2%}"[:-1],
                f"{own.difference:.2g}",
                f"{own.same_class_as_numpy:.2%}"[:-1],
                f"{own.difference_to_numpy:.2g}",
            ]
        rows.append(f"| {one} | {' | '.join(cells)} |")
    return "\n".join(rows)


def compared(
    rates: Mapping[Served, Mapping[int, Sequence[float]]], one: Served
) -> dict[int, Ratio]:
    """Return the ratios to the first backend in the same precision, by batch size."""
    first = next(other for other in rates if other.precision == one.precision)
    return {size: Ratio.of(own, rates[first][size]) for size, own in rates[one].items()}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    """Measure one version, print a table and write the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backends",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="NAME[/VERSION]",
        default="cifar_resnet20_v1",
        help="version to measure (default: the highest of %(default)s)",
    )
    add("--store", type=pathlib.Path, default=manifest.STORE, help="folder of the store")
    add("--rounds", type=int, default=15, help="number of rounds (default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes (default: %(default)s)")
    add("--data", type=pathlib.Path, help="folder of CIFAR-10's binary version")
    add("--out", type=pathlib.Path, default=RESULTS, metavar="DIR", help="folder for the results")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: a standard error needs two rounds")
    name, _, version = options.model.partition("/")
    version = version or versions.latest(options.store, name)
    folder = versions.folder(options.store, name, version)
    served = all_served(versions.read_manifest(folder))
    test = None if options.data is None else cifar10.read_test(options.data)
    starts = {one: start(folder, one) for one in served}
    rates, answers = asyncio.run(measure(folder, served, options.sizes, options.rounds, test))
    described = f"{name} {version} on {machine()}; {options.rounds} rounds"
    text = f"{described}; {', '.join(' '.join(pair) for pair in _packages().items())}"
    text += f"\n\n{table(rates, starts, answers)}\n"
    print(text, end="")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "backends.md").write_text(text)
    data = {
        "machine": machine(),
        "model": f"{name} {version}",
        "packages": _packages(),
        "rounds": options.rounds,
        "served": {
            str(one): {
                "images_per_cpu_second": {n: statistics.median(r) for n, r in by_size.items()},
                "ratio": {n: asdict(ratio) for n, ratio in compared(rates, one).items()},
                "start": asdict(starts[one]),
                "answers": asdict(answers[one]) if answers else None,
            }
            for one, by_size in rates.items()
        },
    }
    (options.out / "backends.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
