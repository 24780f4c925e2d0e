"""Compares Shoal with other servers that run the same neural network under the same load.

    make bench                    (after `make bench-rivals`, which installs the other servers)
    python -m benchmarks.compare --minutes 2

In each round, the servers are started and measured one after the other. Rounds are repeated until
the time limit is reached, and the results are medians of the rounds. The load generator runs on the
same machine as the servers. Each process runs the neural network on one OpenMP thread, and in fp32.
Only one of Shoal's servers runs in int8. The results are written to bench.json, bench.md and
bench.png.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import uvloop

from benchmarks import report
from benchmarks.competitors import COMPETITORS, MOSEC, TUTORIAL, UNBATCHED, Competitor
from benchmarks.endpoint import LARGE, SMALL, VGA, Endpoint, Measurement
from benchmarks.processes import TERMINATED, exit_on_sigterm
from benchmarks.report import Figures
from benchmarks.stopping import lost_on_stop
from shoal.load.images import Picture

RESULTS = pathlib.Path(__file__).parent / "results"
SLO = 0.1
"""Maximum 99th percentile of the latency, in seconds, for the measurement of throughput."""
CONNECTIONS = (64, 32, 16, 4, 2, 1)
"""Numbers of connections. They are tried in this order until the latency is at most `SLO`."""
WARM_UP = 0.3
"""Seconds at the beginning of a measurement that are not counted."""
CROWD = 1000
"""Number of connections in the measurement of `Figures.crowd` and `Figures.crowd_lost`."""


def measure(
    endpoint: Endpoint, competitor: Competitor, maxima: dict[str, float], seconds: float
) -> Figures:
    """Measures one server in one round, but not the requests that are lost when the server stops.

    Args:
        endpoint: Endpoint of the server, which must be ready.
        competitor: The server.
        maxima: Throughput of the servers `UNBATCHED` and `MOSEC`, by name. Half of these numbers
            are the request rates for `Figures.half`. If `competitor` is one of the two servers,
            this function adds its throughput.
        seconds: Length of a measurement in seconds.
    """

    def closed(pictures: Sequence[Picture], connections: int, duration: float) -> Measurement:
        # With many connections or large images, most requests would belong to the warm-up.
        warm_up = WARM_UP if pictures is not LARGE and connections < CROWD else 0.0
        return endpoint.closed_loop(pictures, connections, duration, warm_up)

    figures = Figures(classes=endpoint.classes)
    for connections in CONNECTIONS:
        measurement = closed(SMALL, connections, seconds)
        run = measurement.run
        if run.latency_of_all["p99"] <= SLO:
            break
    figures.connections = connections
    figures.throughput = run.achieved
    figures.cpu = measurement.cpu
    figures.generator_cpu = max(run.generator_cpu)
    figures.different = run.different
    figures.lone = closed(SMALL, 1, seconds / 2).run.latency["p50"]
    figures.large = closed(LARGE, 8, 2 * seconds).run.achieved
    if competitor.name == TUTORIAL:
        return figures  # the tutorial's server is too slow for the other measurements
    figures.vga = closed(VGA, 32, seconds).run.achieved
    for name in (UNBATCHED, MOSEC):
        if name == competitor.name:
            maxima.setdefault(name, run.achieved)
        if name in maxima:
            half = endpoint.open_loop(SMALL, maxima[name] / 2, seconds, WARM_UP).run
            figures.half[name] = (half.latency_of_all["p50"], half.latency_of_all["p99"])
    crowd = closed(SMALL, CROWD, 1.5 * seconds).run
    figures.crowd = crowd.latency_of_all["p99"]
    figures.crowd_lost = sum(n for status, n in crowd.statuses.items() if status != "200")
    return figures


def rounds(options: argparse.Namespace) -> Iterator[dict[str, Figures]]:
    """Yields the results of each round until there is no time for another round."""
    chosen = [c for c in COMPETITORS if not options.only or c.name in options.only]
    for missing in [c for c in chosen if not c.installed]:
        print(f"{missing.name} is not installed. Run `make bench-rivals`", file=sys.stderr)
    deadline = time.monotonic() + 60 * options.minutes
    longest = 0.0
    maxima: dict[str, float] = {}
    while time.monotonic() + longest < deadline:
        began = time.monotonic()
        figures: dict[str, Figures] = {}
        for competitor in [c for c in chosen if c.installed]:
            figures |= turn(competitor, maxima, options.seconds)
        longest = max(longest, time.monotonic() - began)
        yield figures


def turn(competitor: Competitor, maxima: dict[str, float], seconds: float) -> dict[str, Figures]:
    """Measures one server, and prints errors to standard error.

    Returns:
        Results by the name of the server and the kind of upload, without failed measurements.
    """
    results: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        try:
            with competitor.serving(log) as server:
                for raw in competitor.raw:
                    name = competitor.name
                    if len(competitor.raw) > 1:
                        name += ", raw body" if raw else ", form"
                    endpoint = Endpoint(server, raw)
                    endpoint.wait()
                    results[name] = figures = measure(endpoint, competitor, maxima, seconds)
                    print(f"{name:22} {report.line(figures)}", flush=True)
                pictures = SMALL if competitor.name == TUTORIAL else VGA
                figures.lost = uvloop.run(lost_on_stop(server, endpoint.requests(pictures)))
        except RuntimeError as error:
            print(f"{competitor.name}: {error}", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):
                print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    return results


def main() -> int:
    """Runs the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=6.5, help="time limit in minutes (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=1.2,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    add(
        "--only",
        nargs="*",
        choices=[c.name for c in COMPETITORS],
        help="servers to measure (default: all servers)",
    )
    add(
        "--out",
        type=pathlib.Path,
        default=RESULTS,
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    options = parser.parse_args()
    exit_on_sigterm()
    finished: list[dict[str, Figures]] = []
    try:
        for figures in rounds(options):
            finished.append(figures)
            print(f"--- round {len(finished)} done ---", flush=True)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C. The report contains the complete rounds.", file=sys.stderr)
    except asyncio.CancelledError:
        return TERMINATED
    if not finished or not any(finished):
        return 1
    versions = [c.version() for c in COMPETITORS if c.installed and c.package]
    result = report.Report(report.medians(finished), len(finished), report.machine(), versions)
    print(result.table())
    for verdict in result.verdicts():
        print(verdict)
    result.write(options.out / "bench")
    return 0


if __name__ == "__main__":
    sys.exit(main())
