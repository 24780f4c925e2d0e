"""Measures the engine's throughput on an idle CPU, and while another process keeps one core busy.

    python -m benchmarks.engine

The engine runs batches in lanes. A lane is a thread that runs one batch at a time. The program
measures several combinations of four settings: the precision, the number of lanes, the number of
OpenMP threads per lane, and the number of batches in flight. Each combination is measured in a new
process. For each batch size, the throughput is measured twice: first without other load, then while
another process keeps one core busy. Only the ratio of the two throughputs is meaningful, because
the speed of a machine changes over time. The results are written to engine.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, astuple, dataclass

import numpy as np

from benchmarks.processes import started
from benchmarks.report import machine
from model_store import manifest, versions
from model_store.engine import LaneEngine, load_engine

RESULTS = pathlib.Path(__file__).parent / "results"
MODEL = "cifar_resnet20_v1"
SIZES = (1, 2, 4, 8, 16, 32)
DEFAULT_SIZE = 16
"""Default maximum batch size on a CPU."""
TARGET = 0.45
"""Minimum share of the throughput that remains while another process keeps one core busy."""
BUSY = "while True: pass"


@dataclass(frozen=True)
class Choice:
    """A combination of settings."""

    precision: str
    lanes: int
    """Number of batches that run at the same time."""
    threads: int
    """Number of OpenMP threads for each lane."""
    in_flight: int
    """Number of batches in flight: submitted to the engine and not finished."""

    def __str__(self) -> str:
        counts = [(self.lanes, "lane"), (self.threads, "thread")]
        parts = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in counts]
        return ", ".join([self.precision, *parts, f"{self.in_flight} in flight"])


SERVED = Choice("fp32", 2, 1, 3)
"""Default settings of the service on two cores, in fp32."""
SERVED_IN_INT8 = Choice("int8", 1, 1, 2)
"""Default settings of the service on two cores, in int8."""
CHOICES = [
    Choice("fp32", 1, 1, 1),
    Choice("fp32", 1, 1, 2),
    Choice("fp32", 1, 2, 1),
    Choice("fp32", 2, 1, 2),
    SERVED,
    Choice("int8", 1, 1, 1),
    SERVED_IN_INT8,
    Choice("int8", 2, 1, 2),
]


@dataclass(frozen=True)
class Measured:
    """Results of one combination of settings and one batch size."""

    size: int
    """Batch size."""
    rate: float
    """Images per second if no other process is busy."""
    cpu: float
    """CPU seconds per image if no other process is busy."""
    kept: float
    """Share of `rate` that remains while another process keeps one core busy."""


async def compute(engine: LaneEngine, size: int, in_flight: int, seconds: float) -> float:
    """Runs batches for some seconds, and returns the number of images per second.

    Args:
        engine: The engine.
        size: Batch size.
        in_flight: Number of batches in flight: submitted to the engine and not finished.
        seconds: Length of the measurement in seconds.
    """
    images = [np.zeros((32, 32, 3), dtype=np.uint8)] * size
    began = time.perf_counter()
    computed = 0

    async def compute_batches() -> None:
        nonlocal computed
        while time.perf_counter() < began + seconds:
            await engine.infer(images)
            computed += size

    await asyncio.gather(*(compute_batches() for _ in range(in_flight)))
    return computed / (time.perf_counter() - began)


async def measure(choice: Choice, sizes: list[int], rounds: int, seconds: float) -> list[Measured]:
    """Measures one combination of settings in this process.

    A process can measure only one combination, because MXNet reads the number of threads once.

    Args:
        choice: The combination.
        sizes: Batch sizes.
        rounds: Number of rounds. The results are medians of the rounds.
        seconds: Length of each measurement in seconds.
    """
    folder = versions.folder(manifest.STORE, MODEL, versions.latest(manifest.STORE, MODEL))
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    cpus: dict[int, list[float]] = {size: [] for size in sizes}
    kept: dict[int, list[float]] = {size: [] for size in sizes}
    async with load_engine(
        folder, "cpu", choice.threads, max(sizes), choice.precision, choice.lanes
    ) as engine:
        for _ in range(rounds):
            for size in sizes:
                cpu = time.process_time()
                alone = await compute(engine, size, choice.in_flight, seconds)
                cpus[size].append((time.process_time() - cpu) / (alone * seconds))
                with started([sys.executable, "-c", BUSY], grace=0):
                    beside = await compute(engine, size, choice.in_flight, seconds)
                rates[size].append(alone)
                kept[size].append(beside / alone)
    median = statistics.median
    return [Measured(n, median(rates[n]), median(cpus[n]), median(kept[n])) for n in sizes]


def in_a_process(choice: Choice, sizes: list[int], rounds: int, seconds: float) -> list[Measured]:
    """Measures one combination in a new process. The arguments are those of `measure`."""
    arguments = [*astuple(choice), ",".join(map(str, sizes)), rounds, seconds]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--choice", *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    return [Measured(**one) for one in json.loads(result.stdout)]


def main() -> int:
    """Measures all combinations and prints a table. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="number of rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=RESULTS,
        metavar="DIR",
        help="folder for engine.json (default: %(default)s)",
    )
    parser.add_argument("--choice", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.choice:
        precision, *flow, sizes, rounds, seconds = options.choice
        choice = Choice(precision, *map(int, flow))
        chosen_sizes = [int(size) for size in sizes.split(",")]
        results = asyncio.run(measure(choice, chosen_sizes, int(rounds), float(seconds)))
        print(json.dumps([asdict(one) for one in results]))
        return 0
    by_choice = {}
    print(f"{'':38}{'batch':>6}{'images/s':>10}{'CPU us':>8}{'with a busy process':>23}")
    for choice in CHOICES:
        results = in_a_process(choice, list(SIZES), options.rounds, options.seconds)
        by_choice[str(choice)] = [asdict(one) for one in results]
        for one in results:
            print(
                f"{choice!s:38}{one.size:6}{one.rate:10,.0f}{1e6 * one.cpu:8.0f}"
                f"{100 * one.kept:21.0f} %",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(), "rounds": options.rounds, "choices": by_choice}
    (options.out / "engine.json").write_text(json.dumps(data, indent=1) + "\n")
    for served in (SERVED, SERVED_IN_INT8):
        default = next(one for one in by_choice[str(served)] if one["size"] == DEFAULT_SIZE)
        verdict = "met" if default["kept"] >= TARGET else "missed"
        print(
            f"{served.precision} with the default settings: {100 * default['kept']:.0f} % of the "
            "throughput remains with a busy process "
            f"(target: at least {100 * TARGET:.0f} %, {verdict})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
