"""Compares the speed of two checkouts of the code.

    git worktree add ../before v0.1.0
    python -m benchmarks.two_trees ../before . --rounds 16

The servers of both checkouts run at the same time, with the same Python interpreter and the same
settings. In each round, each server receives requests for one second, one server after the other.
The speed of a machine changes from second to second, so only ratios within a round are meaningful.
The CPU time includes all processes of a server. With `--start`, each server is started alone, and
the program measures the time until the server is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks.endpoint import LARGE, SMALL, VGA, Endpoint, require_success
from benchmarks.processes import TERMINATED, exit_on_sigterm
from benchmarks.ratios import Ratio
from benchmarks.servers import Server, module, serving
from shoal.load.images import Picture

SECONDS = 1.0
"""Length of a measurement in seconds."""


@dataclass(frozen=True)
class Load:
    """A kind of load."""

    pictures: list[Picture]
    """Images that are uploaded in turn."""
    raw: bool
    """Whether an image is the body of a request (True) or in a form (False)."""
    connections: int
    """Number of connections, each with one request in flight."""


LOADS = {
    "32 x 32, raw": Load(SMALL, True, 64),
    "32 x 32, form": Load(SMALL, False, 64),
    "640 x 480, raw": Load(VGA, True, 32),
    "640 x 480, form": Load(VGA, False, 32),
    "4000 x 3000, raw": Load(LARGE, True, 8),
    "640 x 480, one at a time": Load(VGA, True, 1),
}


@dataclass(frozen=True)
class Turn:
    """Results of one server in one round."""

    throughput: float
    """Requests per second."""
    cpu: float
    """CPU seconds per request."""
    latency: float
    """Median latency in seconds."""


def turn(server: Server, load: Load) -> Turn:
    """Measures one server. Raises RuntimeError unless every response has the status 200."""
    endpoint = Endpoint(server, load.raw)
    measurement = endpoint.closed_loop(load.pictures, load.connections, SECONDS)
    require_success(measurement.run)
    return Turn(measurement.run.achieved, measurement.cpu, measurement.run.latency["p50"])


def compare(before: Server, after: Server, rounds: int, names: list[str]) -> None:
    """Measures both servers under each load, and prints a Markdown table."""
    print("| load | requests/s before | after / before | CPU, ms | median latency, ms |")
    print("|---|---|---|---|---|")
    for name in names:
        load = LOADS[name]
        for server in before, after:  # the first measurement only warms up the servers
            turn(server, load)
        pairs = [(turn(before, load), turn(after, load)) for _ in range(rounds)]
        old, new = zip(*pairs, strict=True)
        ratio = Ratio.of([t.throughput for t in new], [t.throughput for t in old])
        cpu = [1000 * statistics.mean(t.cpu for t in turns) for turns in (old, new)]
        latency = [1000 * statistics.median(t.latency for t in turns) for turns in (old, new)]
        print(
            f"| {name} | {statistics.mean(t.throughput for t in old):,.0f} "
            f"| {ratio.mean:.3f} ({ratio.error:.3f}) "
            f"| {cpu[0]:.2f} -> {cpu[1]:.2f} | {latency[0]:.2f} -> {latency[1]:.2f} |",
            flush=True,
        )


def compare_starts(options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Measures the start of each server, one server at a time, and prints a Markdown table."""
    print("| | median seconds until ready | median CPU seconds until ready |")
    print("|---|---|---|")
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    cpu: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(options.rounds):
        for name in seconds:
            began = time.monotonic()
            with _serving(name, options, folder) as server:
                Endpoint(server, raw=True).wait()
                seconds[name].append(time.monotonic() - began)
                cpu[name].append(server.cpu_seconds())
    for name in seconds:
        medians = statistics.median(seconds[name]), statistics.median(cpu[name])
        print(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} |")


def _serving(
    name: str, options: argparse.Namespace, folder: pathlib.Path
) -> AbstractContextManager[Server]:
    """Runs the server of the checkout `name`, which is `before` or `after`."""
    environment = {"SHOAL_LOG_LEVEL": "error", "SHOAL_PRECISION": options.precision}
    tree: pathlib.Path = getattr(options, name).resolve()
    return serving(module("service"), folder / name, environment, tree)


def main() -> int:
    """Runs the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_trees",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=pathlib.Path, help="folder of the first checkout")
    parser.add_argument("after", type=pathlib.Path, help="folder of the second checkout")
    parser.add_argument(
        "--rounds", type=int, default=16, help="number of rounds, at least 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--load",
        action="append",
        choices=LOADS,
        help="load to measure; the option can be repeated (default: all loads)",
    )
    parser.add_argument(
        "--precision", default="fp32", help="precision of both servers (default: %(default)s)"
    )
    parser.add_argument(
        "--start",
        action="store_true",
        help="measure the time until each server is ready, not the throughput",
    )
    options = parser.parse_args()
    exit_on_sigterm()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            if options.start:
                compare_starts(options, folder)
                return 0
            with (
                _serving("before", options, folder) as before,
                _serving("after", options, folder) as after,
            ):
                for server in before, after:
                    Endpoint(server, raw=True).wait()
                compare(before, after, options.rounds, options.load or list(LOADS))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return TERMINATED
    return 0


if __name__ == "__main__":
    sys.exit(main())
