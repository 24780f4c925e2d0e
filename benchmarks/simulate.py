"""Simulates the batcher, and compares it with an upper bound and with other servers' policies.

    python -m benchmarks.simulate

The program runs the real `batching.Batcher` on simulated devices and on virtual time. The policies
of other servers, called peers, are simulated with the same arrivals of requests. The program prints
tables and writes simulate.json and simulate.png to the folder `.bench/simulate`. With `--update`,
the program writes these files to benchmarks/results, which is part of the repository. The program
takes about a minute on two cores.

A cell is one simulation: a device, a trace of arrivals, a load and a service level objective (SLO).
The SLO is the timeout of every request. T(n) is the mean time of a batch of n items. There is a
table for each cell, with a row for each policy and these columns:
- goodput: number of responses within the SLO, as a share of the bound. The bound is the largest
  number of responses that any policy could reach (see `benchmarks.simulation.bounds.fluid`).
- average: number of responses within the SLO, as a share of a simpler bound. The simpler bound is
  the arrival rate or the device's maximum rate, whichever is smaller. Both rates are averages over
  the run.
- accepted: share of the requests that were accepted.
- kept: share of the accepted requests that were completed within the SLO.
- p50, p99: latency of accepted requests in milliseconds.
The load of a cell is its arrival rate as a share of the device's maximum rate within the SLO.

Then the program prints, for each target, the number of cells that meet the target. A cell that does
not meet the target is a miss. The targets are a goodput of at least 95 %, and a value of `kept` of
at least 99 %.

A reference is a policy that knows more than the batcher. If a reference misses the target too, and
its result is at least as good as the batcher's, the reference explains the miss. The explanation is
evidence, but not a proof, that the target cannot be met. The references are:
- The clairvoyant policy, which knows all arrivals in advance. Its result is computed without noise,
  and only for devices with one lane. A lane is a thread that runs one batch at a time.
- `fluid`, the policy that computes the bound. It is a reference only if the device becomes slower
  in the middle of the run. For the bound, `fluid` knows of the change from the start. As a
  reference, it learns of the change when the first batch after the change ends.
- Shoal with the exact batch times of the slower device. This reference is simulated with
  `--hindsight`, if the device becomes slower. Shoal gets the times after the second slow batch,
  because the first slow batch could be an outlier.
- Shoal with the best settings for the cell. This reference is simulated with `--hindsight`, if no
  other reference explains a miss of the target for goodput. The settings are chosen from a grid.
  Settings that result in a value of `kept` below 99 % are ignored.

It is also a miss if the goodput of a peer is more than 1 % above Shoal's. This miss is explained if
the peer's value of `kept` is below 99 % and below Shoal's value.

Finally, the program measures in real time how long a single item waits before it is submitted to
the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from batching import Batcher, LatencyTable
from benchmarks.simulation.arrivals import TRACES
from benchmarks.simulation.bounds import clairvoyant, fluid
from benchmarks.simulation.devices import DEVICES, LARGEST, Clockwork
from benchmarks.simulation.hindsight import hindsight
from benchmarks.simulation.outcome import Figures, Request, figures
from benchmarks.simulation.peers import PEERS
from benchmarks.simulation.plot import plot
from benchmarks.simulation.shoal import shoal
from benchmarks.simulation.verdict import GOODPUT, KEPT, verdict

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
"""Folder of the results that are in the repository. Files are written here only with `--update`."""
OUT = ROOT / ".bench" / "simulate"
"""Default folder of the results. Git ignores this folder."""

TIGHT, LOOSE = 10, 50
"""SLOs as multiples of T(1), the mean time of a batch of one item."""
LOADS = {
    ("poisson", TIGHT): (0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.2, 2.0, 5.0, 10.0),
    ("poisson", LOOSE): (0.1, 0.5, 0.9, 1.0, 2.0, 10.0),
    ("on/off", TIGHT): (0.3, 1.0, 3.0),
    ("ramp", TIGHT): (0.3, 1.0, 3.0),
    ("bursts of 128", TIGHT): (0.3, 1.0),
}
"""Loads for devices with one lane, by trace and SLO."""
LOADS_OF_LANES = {
    ("poisson", TIGHT): (0.5, 0.9, 1.0, 2.0, 10.0),
    ("on/off", TIGHT): (1.0, 3.0),
}
"""Loads for devices with several lanes, by trace and SLO."""
FULL_BATCHES, LONG_RUN = 40, 400
"""Lengths of a normal run and of a long run, as the number of full batches that the device can run.
If the device becomes slower during a run, the run is long. The change makes some requests late, and
in a normal run the share of late requests would be too large."""
MAX_STEPS = 250_000
"""The clairvoyant policy is computed only if the number of arrivals times the number of batch sizes
is at most this number."""


@dataclass(frozen=True)
class Cell:
    """The parameters of one simulation."""

    device: str
    """Name of the device, a key of `DEVICES`."""
    slo: int
    """SLO as a multiple of T(1)."""
    trace: str
    """Name of the arrivals, a key of `TRACES`."""
    load: float
    """Arrival rate as a share of the device's maximum rate within the SLO."""


CELLS = [
    Cell(name, slo, trace, load)
    for name, device in DEVICES.items()
    for (trace, slo), loads in (LOADS if device.lanes == 1 else LOADS_OF_LANES).items()
    for load in loads
]


def run(cell: Cell, *, seed: int = 1, in_hindsight: bool = False) -> dict[str, Any]:
    """Simulates one cell with all policies, and computes the bounds.

    Args:
        cell: Parameters of the simulation.
        seed: Seed of the arrivals and of the noise.
        in_hindsight: Whether to simulate the references that take several minutes.

    Returns:
        The results, as they are written to simulate.json.
    """
    device = DEVICES[cell.device]
    slo = cell.slo * device.mean(1)
    capacity = device.capacity(slo)
    rate = cell.load * capacity
    batches = FULL_BATCHES if device.slower == 1 or cell.load > 2 else LONG_RUN
    span = max(batches * device.mean(LARGEST), 12 * slo)
    count = max(2000, round(rate * span))
    half_time = count / rate / 2
    arrivals = TRACES[cell.trace](rate, count, seed)

    def calm(requests: Sequence[Request]) -> Sequence[Request]:
        """Returns the requests that the change of the device's speed does not affect."""
        return [r for r in requests if not -slo <= r.arrived - half_time <= 3 * slo]

    bound = figures(fluid(arrivals, device, slo, half_time), slo).goodput
    rows = {}
    for name, policy in {"shoal": shoal, **PEERS}.items():
        requests = policy(arrivals, Clockwork(device, half_time, seed), slo)
        result = figures(requests, slo)
        rows[name] = {**asdict(result), "of_bound": result.goodput / bound}
        if device.slower != 1:
            rows[name]["kept_share_but_for_the_change"] = figures(calm(requests), slo).kept_share
    offered = rows["shoal"]["offered"]
    report = {
        **asdict(cell),
        "slo_seconds": slo,
        "arrivals": len(arrivals),
        "capacity": capacity,
        "fluid_bound": bound,
        "average_bound": min(offered, capacity),
        "rows": rows,
    }
    if device.slower != 1:
        detected = half_time + device.slower * device.mean(1)
        late = figures(fluid(arrivals, device, slo, half_time, known_from=detected), slo)
        report["unforeseen"] = {"kept_share": late.kept_share, "of_bound": late.goodput / bound}
        ours = rows["shoal"]
        if in_hindsight and (ours["of_bound"] < GOODPUT or ours["kept_share"] < KEPT):
            requests = shoal(arrivals, Clockwork(device, half_time, seed), slo, informed=True)
            informed = figures(requests, slo)
            report["told"] = {
                "kept_share": informed.kept_share,
                "of_bound": informed.goodput / bound,
            }
    sizes = sum(device.mean(size) <= slo for size in range(1, LARGEST + 1))
    missed = rows["shoal"]["of_bound"] < GOODPUT
    if missed and device.slower == device.lanes == 1 and len(arrivals) * sizes <= MAX_STEPS:
        share = clairvoyant(arrivals, device, slo)
        report["clairvoyant"] = {
            "share": share,
            "of_bound": share * offered / bound,
            "shoal": rows["shoal"]["accepted_share"] * rows["shoal"]["kept_share"] / share,
        }
    if in_hindsight and verdict([report])[0].missed:

        def attempt() -> tuple[Figures, float]:
            requests = shoal(arrivals, Clockwork(device, half_time, seed), slo)
            counted = requests if device.slower == 1 else calm(requests)
            return figures(requests, slo), figures(counted, slo).kept_share

        best = hindsight(attempt, KEPT)
        report["hindsight"] = {"of_bound": best["goodput"] / bound, **best}
    return report


def in_flight(load: float, max_in_flight: int, *, seed: int = 1) -> dict[str, Any]:
    """Simulates a GPU with a host that needs 0.3 ms to assemble and copy each batch.

    Args:
        load: Arrival rate as a share of the device's maximum rate within the SLO.
        max_in_flight: Maximum number of batches that are submitted to the engine and not finished.
        seed: Seed of the arrivals and of the noise.
    """
    device = DEVICES["gpu"]
    slo = TIGHT * device.mean(1)
    rate = load * device.capacity(slo)
    arrivals = TRACES["poisson"](rate, round(rate * FULL_BATCHES * device.mean(LARGEST)), seed)
    clockwork = Clockwork(device, math.inf, seed)
    requests = shoal(arrivals, clockwork, slo, max_in_flight=max_in_flight, prepare=0.3e-3)
    result = figures(requests, slo)
    share = result.goodput / min(result.offered, device.capacity(slo))
    return {"load": load, "max_in_flight": max_in_flight, **asdict(result), "of_bound": share}


def lone_wait(items: int = 2000) -> dict[str, float]:
    """Measures in real time how many seconds a single item waits for an idle engine, on uvloop."""

    async def infer(batch: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        return batch

    async def scenario() -> list[float]:
        table = LatencyTable({1: [1e-3] * 3})
        async with Batcher(infer, latency=table, max_batch_size=1, max_queue_size=8) as batcher:
            return sorted([(await batcher.submit(n, 1.0)).queue_seconds for n in range(items)])

    waits = uvloop.run(scenario())
    return {"p50": waits[items // 2], "p99": waits[items * 99 // 100]}


def show(results: list[dict[str, Any]]) -> None:
    """Prints the tables of all cells."""
    for cell in results:
        print(
            f"\n{cell['device']}, SLO {cell['slo']} x T(1) = {1e3 * cell['slo_seconds']:.1f} ms, "
            f"{cell['trace']}, load {cell['load']:g}: bound {cell['fluid_bound']:,.0f}/s"
        )
        columns = f"{'goodput':>8}{'average':>9}{'accepted':>10}{'kept':>8}{'p50':>9}{'p99':>9}"
        print(f"  {'':14}{columns}")
        for name, row in cell["rows"].items():
            print(
                f"  {name:14}{row['of_bound']:8.1%}{row['goodput'] / cell['average_bound']:9.1%}"
                f"{row['accepted_share']:10.1%}"
                f"{row['kept_share']:8.1%}{_ms(row['p50'])}{_ms(row['p99'])}"
            )


def finite(value: Any) -> Any:
    """Replaces infinite numbers by None, because JSON cannot store infinite numbers."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:9.2f}" if math.isfinite(seconds) else f"{'late':>9}"


def options() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description="Simulate the batcher and other policies.")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="number of processes that simulate cells (default: %(default)s)",
    )
    parser.add_argument(
        "--hindsight",
        action="store_true",
        help="also simulate the references that take several minutes",
    )
    parser.add_argument(
        "--trace",
        type=int,
        default=1,
        metavar="SEED",
        help="seed of the arrivals and of the noise (default: %(default)s)",
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--out",
        type=Path,
        default=OUT,
        metavar="FOLDER",
        help="folder for the results (default: %(default)s)",
    )
    folder.add_argument(
        "--update",
        dest="out",
        action="store_const",
        const=RESULTS,
        help="write the results to benchmarks/results, which is part of the repository",
    )
    return parser


def main() -> None:
    """Simulates all cells, prints the tables and writes the files."""
    arguments = options().parse_args()

    todo = sorted(CELLS, key=lambda cell: -cell.load)  # cells that take long are simulated first
    with ProcessPoolExecutor(arguments.processes) as pool:
        run_cell = functools.partial(run, seed=arguments.trace, in_hindsight=arguments.hindsight)
        done = dict(zip(todo, pool.map(run_cell, todo), strict=True))
    results = [done[cell] for cell in CELLS]

    by_in_flight = [
        in_flight(load, count, seed=arguments.trace) for load in (0.5, 2.0) for count in (1, 2)
    ]

    show(results)
    print("\nGPU, if the host needs 0.3 ms to assemble and copy each batch")
    for row in by_in_flight:
        print(
            f"  load {row['load']:g}, {row['max_in_flight']} batches in flight: goodput "
            f"{row['of_bound']:.1%} of the bound, p50{_ms(row['p50'])}, p99{_ms(row['p99'])}"
        )
    wait = lone_wait()
    print(
        f"\na single item waits {1e6 * wait['p50']:.0f} us (median) or "
        f"{1e6 * wait['p99']:.0f} us (p99) before it is submitted to the engine"
    )
    targets = verdict(results)
    print("\n" + "\n".join(line for target in targets for line in target.lines()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {
        "verdict": [{"met": target.met, **asdict(target)} for target in targets],
        "cells": results,
        "in_flight": by_in_flight,
        "lone_wait_seconds": wait,
    }
    text = json.dumps(finite(report), indent=1, allow_nan=False)
    (arguments.out / "simulate.json").write_text(text + "\n")
    plot(results, arguments.out / "simulate.png")


if __name__ == "__main__":
    main()
