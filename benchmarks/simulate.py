"""How well does the batcher do, against what is possible and against other policies?

    python -m benchmarks.simulate

drives the real `batching.Batcher` on a clock that jumps, with engines that exist as a formula,
next to restatements of the field's policies on the same arrivals. Prints a table, and writes
simulate.json and simulate.png to benchmarks/results. Takes a minute or so on two cores.

Columns: load, as a share of the device's best rate within the SLO; `goodput`, answers within the
SLO as a share of the bound, which is the lesser of what was offered and what the device could
compute at its best, moment for moment; `average`, the same against min(offered, max over n of
n/T(n)) over the whole run, which forgets that what was offered at one moment cannot be computed at
another; `kept`, the share of accepted requests answered within the SLO; median and 99th percentile
of the accepted, in milliseconds.

Then, target by target, in how many cells it is met, and of every other cell whether somebody who
knows more does no worse and misses it, too, which explains it and proves nothing. Who knows more:
- on one lane, the *clairvoyant*, who knows all arrivals in advance and whose device makes no noise;
- where the device slows down midway, the *unforeseen* change: the same flow by one who hears of it
  when the first batch after it can have ended;
- there, too, with `--hindsight`, which takes minutes more: our own batcher, *told* what the device
  takes by the second batch after the change, the first that can tell it from an outlier;
- with `--hindsight`, where none of these explains it: our own batcher with those settings of a
  grid, its own among them, that turn out to be the best for that very trace while they keep its
  promises, but for the moment of a change.
Nobody has to beat a peer that is ahead by breaking more promises than we do, and than it may.

At the end, in real time: how long a lone item waits before it is handed to the engine.
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

RESULTS = Path(__file__).parent / "results"

TIGHT, LOOSE = 10, 50
"""SLOs, in units of T(1)."""
LOADS = {
    ("poisson", TIGHT): (0.1, 0.2, 0.5, 0.8, 0.9, 1.0, 1.2, 2.0, 5.0, 10.0),
    ("poisson", LOOSE): (0.1, 0.5, 0.9, 1.0, 2.0, 10.0),
    ("on/off", TIGHT): (0.3, 1.0, 3.0),
    ("ramp", TIGHT): (0.3, 1.0, 3.0),
    ("bursts of 128", TIGHT): (0.3, 1.0),
}
LOADS_OF_LANES = {
    ("poisson", TIGHT): (0.5, 0.9, 1.0, 2.0, 10.0),
    ("on/off", TIGHT): (1.0, 3.0),
}
FULL_BATCHES, LONG_RUN = 40, 400
"""Length of a run. A change in the middle costs the promises of a moment: against a run as short as
the others that moment is long."""
MOST_STEPS = 250_000
"""Arrivals times batch sizes up to which the clairvoyant's schedule is worked out."""


@dataclass(frozen=True)
class Cell:
    """One trace on one device. `slo` is in units of T(1)."""

    device: str
    slo: int
    trace: str
    load: float


CELLS = [
    Cell(name, slo, trace, load)
    for name, device in DEVICES.items()
    for (trace, slo), loads in (LOADS if device.lanes == 1 else LOADS_OF_LANES).items()
    for load in loads
]


def run(cell: Cell, *, seed: int = 1, in_hindsight: bool = False) -> dict[str, Any]:
    """Everybody on the same arrivals, and the bounds."""
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
        """Those that a change in the middle does not touch."""
        return [r for r in requests if not -slo <= r.arrived - half_time <= 3 * slo]

    bound = figures(fluid(arrivals, device, slo, half_time), slo).goodput
    rows = {}
    for name, policy in {"shoal": shoal, **PEERS}.items():
        requests = policy(arrivals, Clockwork(device, half_time, seed), slo)
        found = figures(requests, slo)
        rows[name] = {**asdict(found), "of_bound": found.goodput / bound}
        if device.slower != 1:
            rows[name]["kept_share_but_for_the_change"] = figures(calm(requests), slo).kept_share
    offered = rows["shoal"]["offered"]
    result = {
        **asdict(cell),
        "slo_seconds": slo,
        "arrivals": len(arrivals),
        "capacity": capacity,
        "fluid_bound": bound,
        "average_bound": min(offered, capacity),
        "rows": rows,
    }
    if device.slower != 1:
        heard = half_time + device.slower * device.mean(1)
        blind = figures(fluid(arrivals, device, slo, half_time, heard=heard), slo)
        result["unforeseen"] = {"kept_share": blind.kept_share, "of_bound": blind.goodput / bound}
        ours = rows["shoal"]
        if in_hindsight and (ours["of_bound"] < GOODPUT or ours["kept_share"] < KEPT):
            requests = shoal(arrivals, Clockwork(device, half_time, seed), slo, told=True)
            told = figures(requests, slo)
            result["told"] = {"kept_share": told.kept_share, "of_bound": told.goodput / bound}
    sizes = sum(device.mean(size) <= slo for size in range(1, LARGEST + 1))
    missed = rows["shoal"]["of_bound"] < GOODPUT
    if missed and device.slower == device.lanes == 1 and len(arrivals) * sizes <= MOST_STEPS:
        share = clairvoyant(arrivals, device, slo)
        result["clairvoyant"] = {
            "share": share,
            "of_bound": share * offered / bound,
            "shoal": rows["shoal"]["accepted_share"] * rows["shoal"]["kept_share"] / share,
        }
    if in_hindsight and verdict([result])[0].missed:

        def attempt() -> tuple[Figures, float]:
            requests = shoal(arrivals, Clockwork(device, half_time, seed), slo)
            counted = requests if device.slower == 1 else calm(requests)
            return figures(requests, slo), figures(counted, slo).kept_share

        best = hindsight(attempt, KEPT)
        result["hindsight"] = {"of_bound": best["goodput"] / bound, **best}
    return result


def in_flight(load: float, max_in_flight: int, *, seed: int = 1) -> dict[str, Any]:
    """The GPU, where the host needs 0.3 ms to assemble and copy a batch before it can begin."""
    device = DEVICES["gpu"]
    slo = TIGHT * device.mean(1)
    rate = load * device.capacity(slo)
    arrivals = TRACES["poisson"](rate, round(rate * FULL_BATCHES * device.mean(LARGEST)), seed)
    clockwork = Clockwork(device, math.inf, seed)
    requests = shoal(arrivals, clockwork, slo, max_in_flight=max_in_flight, prepare=0.3e-3)
    found = figures(requests, slo)
    share = found.goodput / min(found.offered, device.capacity(slo))
    return {"load": load, "max_in_flight": max_in_flight, **asdict(found), "of_bound": share}


def lone_wait(items: int = 2000) -> dict[str, float]:
    """Seconds in the queue of an item that comes to an idle engine, on uvloop, in real time."""

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
    """JSON knows no infinity: `null` is a latency beyond all bounds."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:9.2f}" if math.isfinite(seconds) else f"{'late':>9}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the batcher and its peers.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hindsight", action="store_true", help="takes several minutes more")
    parser.add_argument(
        "--trace", type=int, default=1, metavar="SEED", help="of arrivals and noise"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    todo = sorted(CELLS, key=lambda cell: -cell.load)  # the long ones first
    with ProcessPoolExecutor(arguments.processes) as pool:
        each = functools.partial(run, seed=arguments.trace, in_hindsight=arguments.hindsight)
        done = dict(zip(todo, pool.map(each, todo), strict=True))
    results = [done[cell] for cell in CELLS]

    slots = [
        in_flight(load, slots, seed=arguments.trace) for load in (0.5, 2.0) for slots in (1, 2)
    ]

    show(results)
    print("\nbatches in flight, on the gpu with 0.3 ms to assemble and copy each")
    for row in slots:
        print(
            f"  load {row['load']:g}, {row['max_in_flight']} in flight: {row['of_bound']:.1%} of "
            f"the bound, p50{_ms(row['p50'])}, p99{_ms(row['p99'])}"
        )
    wait = lone_wait()
    print(
        f"\na lone item waits {1e6 * wait['p50']:.0f} us before it is handed to the engine, "
        f"p99 {1e6 * wait['p99']:.0f} us"
    )
    targets = verdict(results)
    print("\n" + "\n".join(line for target in targets for line in target.lines()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {
        "verdict": [{"met": target.met, **asdict(target)} for target in targets],
        "cells": results,
        "in_flight": slots,
        "lone_wait_seconds": wait,
    }
    text = json.dumps(finite(report), indent=1, allow_nan=False)
    (arguments.out / "simulate.json").write_text(text + "\n")
    plot(results, arguments.out / "simulate.png")


if __name__ == "__main__":
    main()
