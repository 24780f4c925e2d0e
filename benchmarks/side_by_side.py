"""Compares the throughput of Shoal, other servers and a minimal server.

    make side-by-side                (with Mosec, if `make bench-rivals` has installed it)
    python -m benchmarks.side_by_side Mosec "Shoal in int8" --rounds 20
    python -m benchmarks.side_by_side "mxnet in fp32" "onnxruntime in fp32"

All servers run at the same time. In each round, each server receives requests for one second, one
server after the other. The speed of a machine changes from second to second, so only ratios within
a round are meaningful. The body of each request is a small image. The minimal server is called
`least` (benchmarks/baselines/fastapi_least.py). This server uses FastAPI, reads the body, and runs
the same neural network with the same engine, but does nothing else. A server called
`mxnet in fp32` is Shoal with that backend and precision. The column `idle` is the share
of time in which the cores were idle while the server was under load.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.compare import WARM_UP
from benchmarks.competitors import COMPETITORS, MOSEC, Competitor
from benchmarks.endpoint import SMALL, Endpoint, require_success
from benchmarks.processes import TERMINATED, exit_on_sigterm
from benchmarks.ratios import Ratio
from benchmarks.servers import module
from model_store import backends

LEAST = [
    Competitor(
        f"least in {precision}",
        module("benchmarks.baselines.fastapi_least"),
        (True,),
        environment={
            "SHOAL_PRECISION": precision,
            "SHOAL_ENGINE_LANES": "2",
            "SHOAL_LOG_LEVEL": "warning",
        },
    )
    for precision in ("fp32", "int8")
]
BACKENDS = [
    Competitor(
        f"{backend} in {precision}",
        module("service"),
        (True,),
        environment={
            "SHOAL_BACKEND": backend,
            "SHOAL_PRECISION": precision,
            "SHOAL_LOG_LEVEL": "warning",
        },
    )
    for precision in ("fp32", "int8")
    for backend in backends.installed()
]
"""Shoal with each installed backend."""
BY_NAME = {c.name: c for c in [*COMPETITORS, *LEAST, *BACKENDS] if True in c.raw}
"""Name -> server, for all servers that accept an image as the body."""
SECONDS = 1.0
"""Length of a measurement in seconds."""


@dataclass(frozen=True)
class Turn:
    """Results of one server in one round."""

    throughput: float
    """Requests per second."""
    cpu: float
    """CPU seconds per request."""
    p99: float
    """99th percentile of the latency, in seconds."""
    idle: float
    """Share of time in which the cores were idle."""


def turn(endpoint: Endpoint, connections: int) -> Turn:
    """Measures one server. Raises RuntimeError unless every response has the status 200."""
    idle, total = _ticks()
    measurement = endpoint.closed_loop(SMALL, connections, SECONDS, WARM_UP)
    idle_after, total_after = _ticks()
    require_success(measurement.run)
    return Turn(
        measurement.run.achieved,
        measurement.cpu,
        measurement.run.latency_of_all["p99"],
        (idle_after - idle) / (total_after - total),
    )


def measure(names: list[str], rounds: int, connections: int) -> dict[str, list[Turn]]:
    """Measures servers one after the other, in rounds.

    Args:
        names: Names of the servers.
        rounds: Number of rounds.
        connections: Number of connections, each with one request in flight.

    Returns:
        Results of all rounds, by the name of the server.

    Raises:
        RuntimeError: A server does not respond, or a response has another status than 200.
    """
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoints = {
            name: Endpoint(stack.enter_context(BY_NAME[name].serving(folder / name)), raw=True)
            for name in names
        }
        for endpoint in endpoints.values():
            endpoint.wait()
        turns: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, endpoint in endpoints.items():
                turns[name].append(turn(endpoint, connections))
        return turns


def table(turns: dict[str, list[Turn]]) -> str:
    """Returns a Markdown table. The ratios of the throughput are relative to the first server."""
    first_name, first = next(iter(turns.items()))
    rows = [
        f"| | requests/s | ratio to {first_name} | CPU, ms per request | p99, ms | idle |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in turns.items():
        ratio = Ratio.of([t.throughput for t in own], [t.throughput for t in first])
        rows.append(
            f"| {name} | {statistics.mean(t.throughput for t in own):,.0f} "
            f"| {ratio.mean:.2f} ({ratio.error:.2f}) "
            f"| {1e3 * statistics.mean(t.cpu for t in own):.2f} "
            f"| {1e3 * statistics.mean(t.p99 for t in own):.0f} "
            f"| {statistics.mean(t.idle for t in own):.0%} |"
        )
    return "\n".join(rows)


def _ticks() -> tuple[int, int]:
    """Returns the idle time and the total time of all cores since the boot, in clock ticks."""
    row = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    ticks = [int(one) for one in row]
    return ticks[3] + ticks[4], sum(ticks)


def main() -> int:
    """Runs the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = (MOSEC, *(c.name for c in [*LEAST, *BACKENDS]))
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        default=[name for name in default if BY_NAME[name].installed],
        help=f"servers to compare, of {', '.join(BY_NAME)} "
        f"(default: {', '.join(default)}, as far as they are installed)",
    )
    add("--rounds", type=int, default=20, help="number of rounds (default: %(default)s)")
    add("--connections", type=int, default=64, help="number of connections (default: %(default)s)")
    options = parser.parse_args()
    for name in options.names:
        if name not in BY_NAME:
            parser.error(f"there is no server {name}; choose from {', '.join(BY_NAME)}")
        if not BY_NAME[name].installed:
            parser.error(f"{name} is not installed. Run `make bench-rivals`")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, because the standard error needs two rounds")
    exit_on_sigterm()
    try:
        print(table(measure(options.names, options.rounds, options.connections)))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return TERMINATED
    return 0


if __name__ == "__main__":
    sys.exit(main())
