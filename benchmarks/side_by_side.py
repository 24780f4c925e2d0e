"""How does the throughput of servers compare, and how near is ours to what FastAPI allows?

    make side-by-side                      (Mosec takes part once `make bench-rivals` has set it up)
    python -m benchmarks.side_by_side Mosec "Shoal in int8" --rounds 20

All run at once and are loaded in turns, a second each: what a machine is worth changes from second
to second, and so only a ratio within a round counts. Raw bodies, small pictures. `least` reads the
body and computes the same network on the same engine, on FastAPI, and does nothing else
(benchmarks/baselines/fastapi_least.py). `idle` is the machine's, start and end of a turn included.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.compare import SMALL, TERMINATED, WARM_UP, Entrance, leave
from benchmarks.contestants import CONTESTANTS, INT8, MOSEC, OURS, SHOAL, Contestant, serving

MODULE = "benchmarks.baselines.fastapi_least"
LEAST = [
    Contestant(
        f"least in {precision}",
        (OURS, "-m", MODULE),
        (True,),
        environment={
            "SHOAL_PRECISION": precision,
            "SHOAL_ENGINE_LANES": "2",
            "SHOAL_LOG_LEVEL": "warning",
        },
    )
    for precision in ("fp32", "int8")
]
KNOWN = {c.name: c for c in [*CONTESTANTS, *LEAST] if True in c.raw}
SECONDS = 1.0


@dataclass(frozen=True)
class Turn:
    """Requests a second, CPU seconds a request, seconds, and the idle share of the machine."""

    throughput: float
    cpu: float
    p99: float
    idle: float


def turn(entrance: Entrance, connections: int) -> Turn:
    """Raises RuntimeError unless all it answers is 200."""
    cpu, (idle, total) = entrance.server.cpu_seconds(), _ticks()
    run = entrance.closed(SMALL, connections, SECONDS)
    cpu, (idle_then, total_then) = entrance.server.cpu_seconds() - cpu, _ticks()
    if set(run.statuses) != {"200"}:
        raise RuntimeError(f"answers under load: {run.statuses}")
    return Turn(
        run.achieved,
        cpu / max(run.achieved * (WARM_UP + SECONDS), 1),
        run.latency_of_all["p99"],
        (idle_then - idle) / (total_then - total),
    )


def measure(names: list[str], rounds: int, connections: int) -> dict[str, list[Turn]]:
    """Raises RuntimeError where one does not answer."""
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        entrances = {
            name: Entrance(stack.enter_context(serving(KNOWN[name], folder / name)), raw=True)
            for name in names
        }
        for entrance in entrances.values():
            entrance.wait()
        found: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, entrance in entrances.items():
                found[name].append(turn(entrance, connections))
        return found


def table(found: dict[str, list[Turn]]) -> str:
    """In Markdown; ratios are to the first, with their standard errors."""
    name, first = next(iter(found.items()))
    rows = [
        f"| | requests/s | of {name} | CPU, ms a request | p99, ms | idle |",
        "|---|---|---|---|---|---|",
    ]
    for name, turns in found.items():
        ratios = [a.throughput / b.throughput for a, b in zip(turns, first, strict=True)]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        rows.append(
            f"| {name} | {statistics.mean(t.throughput for t in turns):,.0f} "
            f"| {statistics.mean(ratios):.2f} ({error:.2f}) "
            f"| {1e3 * statistics.mean(t.cpu for t in turns):.2f} "
            f"| {1e3 * statistics.mean(t.p99 for t in turns):.0f} "
            f"| {statistics.mean(t.idle for t in turns):.0%} |"
        )
    return "\n".join(rows)


def _ticks() -> tuple[int, int]:
    """Of all cores since the start, idle and in all."""
    row = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    ticks = [int(one) for one in row]
    return ticks[3] + ticks[4], sum(ticks)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = (MOSEC, "least in fp32", SHOAL, "least in int8", INT8)
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        default=[name for name in usual if KNOWN[name].set_up],
        help=f"of: {', '.join(KNOWN)}",
    )
    add("--rounds", type=int, default=20, help="(%(default)s)")
    add("--connections", type=int, default=64, help="(%(default)s)")
    options = parser.parse_args()
    for name in options.names:
        if name not in KNOWN:
            parser.error(f"{name} is none of {', '.join(KNOWN)}")
        if not KNOWN[name].set_up:
            parser.error(f"{name} is not set up: make bench-rivals")
    if options.rounds < 2:
        parser.error("a standard error takes two rounds")
    signal.signal(signal.SIGTERM, leave)
    try:
        print(table(measure(options.names, options.rounds, options.connections)))
    except RuntimeError as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return TERMINATED
    return 0


if __name__ == "__main__":
    sys.exit(main())
