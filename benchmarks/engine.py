"""Which way of computing on a CPU gives the most, and what is left of it beside a busy process?

    python -m benchmarks.engine

Each choice of precision, of lanes, of OpenMP threads in each and of batches in flight has a process
of its own; in it every batch size computes in turns undisturbed and beside a process that does
nothing but take a core. What counts is the ratio within a turn. Writes engine.json.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass

import numpy as np

from benchmarks.outcome import machine
from model_store import manifest, versions
from model_store.engine import GluonEngine, load_engine

RESULTS = pathlib.Path(__file__).parent / "results"
MODEL = "cifar_resnet20_v1"
SIZES = (1, 2, 4, 8, 16, 32)
USUAL = 16
"""The largest batch on a CPU, where nothing else is set."""
ENOUGH = 0.45
"""Of the undisturbed throughput, that must be left beside one busy process."""
BUSY = "while True: pass"


@dataclass(frozen=True)
class Choice:
    precision: str
    lanes: int
    threads: int
    in_flight: int

    def __str__(self) -> str:
        counts = [(self.lanes, "lane"), (self.threads, "thread")]
        told = [f"{n} {name}{'s' if n > 1 else ''}" for n, name in counts]
        return ", ".join([self.precision, *told, f"{self.in_flight} in flight"])


SERVED = Choice("fp32", 2, 1, 3)
"""As we serve on two cores, and below in int8."""
SERVED_IN_INT8 = Choice("int8", 1, 1, 2)
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
class Found:
    """Of one choice and batch size."""

    size: int
    rate: float
    """Images a second, undisturbed."""
    cpu: float
    """Seconds of CPU an image, undisturbed."""
    kept: float
    """Share of the rate that is left beside a busy process."""


@contextmanager
def busy_process() -> Iterator[None]:
    """One that takes a core, for as long as this lasts."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def compute(engine: GluonEngine, size: int, in_flight: int, seconds: float) -> float:
    """Images a second, in batches of `size`."""
    images = [np.zeros((32, 32, 3), dtype=np.uint8)] * size
    began = time.perf_counter()
    computed = 0

    async def one_after_another() -> None:
        nonlocal computed
        while time.perf_counter() < began + seconds:
            await engine.infer(images)
            computed += size

    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    return computed / (time.perf_counter() - began)


async def measure(choice: Choice, sizes: list[int], rounds: int, seconds: float) -> list[Found]:
    """In this process, whose first and only choice of threads it must be."""
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
                with busy_process():
                    beside = await compute(engine, size, choice.in_flight, seconds)
                rates[size].append(alone)
                kept[size].append(beside / alone)
    middle = statistics.median
    return [Found(n, middle(rates[n]), middle(cpus[n]), middle(kept[n])) for n in sizes]


def in_a_process(choice: Choice, sizes: list[int], rounds: int, seconds: float) -> list[Found]:
    """The same in a fresh one."""
    arguments = [*astuple(choice), ",".join(map(str, sizes)), rounds, seconds]
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--choice", *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    return [Found(**one) for one in json.loads(told.stdout)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--choice", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.choice:
        precision, *flow, sizes, rounds, seconds = options.choice
        choice = Choice(precision, *map(int, flow))
        wanted = [int(size) for size in sizes.split(",")]
        found = asyncio.run(measure(choice, wanted, int(rounds), float(seconds)))
        print(json.dumps([asdict(one) for one in found]))
        return 0
    by_choice = {}
    print(f"{'':38}{'batch':>6}{'images/s':>10}{'CPU us':>8}{'beside a busy process':>23}")
    for choice in CHOICES:
        found = in_a_process(choice, list(SIZES), options.rounds, options.seconds)
        by_choice[str(choice)] = [asdict(one) for one in found]
        for one in found:
            print(
                f"{choice!s:38}{one.size:6}{one.rate:10,.0f}{1e6 * one.cpu:8.0f}"
                f"{100 * one.kept:21.0f} %",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(), "rounds": options.rounds, "choices": by_choice}
    (options.out / "engine.json").write_text(json.dumps(data, indent=1) + "\n")
    for served in (SERVED, SERVED_IN_INT8):
        usual = next(one for one in by_choice[str(served)] if one["size"] == USUAL)
        verdict = "yes" if usual["kept"] >= ENOUGH else "NO"
        told = f"{100 * ENOUGH:.0f} % of it is left beside a busy process"
        print(f"in {served.precision} as we serve, above {told}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
