"""Compares the throughput of two front ends with the throughput of one front end.

    python -m benchmarks.workers

A front end is a process that handles HTTP and decodes images. The engine is simulated by a device
that sleeps (benchmarks/simulated_device.py), so all CPU cores are free for the front ends. Two
servers are put under load one after the other: a server with one process, and a server with two
front ends and an engine process. The speed of a machine changes, so only ratios within a round are
meaningful.

The servers run on two cores. If the machine has more cores, the load generator uses the other
cores, and the throughput is measured. If the machine has two cores, the load generator uses the
same cores as the servers. In this case, the program computes the throughput that a server would
reach on two free cores from the CPU time per request of each process. The busiest process limits
the throughput, because one process can use only one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.endpoint import SMALL, Endpoint
from benchmarks.processes import cpu_seconds, exit_on_sigterm
from benchmarks.servers import START_TIMEOUT, Server, module, serving
from shoal.load import processes
from shoal.load.generator import Job

CORES = 2
"""Number of cores that the servers use."""
MAX_REJECTED = 0.02
"""Maximum share of rejected requests. With a larger share, the results would not be comparable."""
COUNTS = (1, 2)
"""Numbers of front ends that are compared."""
READY_IN_A_ROW = 12
"""Number of successful responses in a row after which all front ends count as ready. Front ends do
not become ready at the same time, and each request may reach a different front end."""


@dataclass(frozen=True)
class Workers:
    """A running server with one or two front ends."""

    server: Server
    processes: dict[str, int]
    """Process IDs, by the name of the process."""

    def cpu_seconds(self) -> dict[str, float]:
        """Returns the CPU seconds that each process has used, by the name of the process."""
        return {name: cpu_seconds(pid) for name, pid in self.processes.items()}

    def batches(self) -> tuple[float, float]:
        """Returns the number of images and the number of batches that the server has computed."""
        with urllib.request.urlopen(f"{self.server.address}/metrics") as answer:  # noqa: S310
            families = text_string_to_metric_families(answer.read().decode())
        values = {sample.name: sample.value for family in families for sample in family.samples}
        return values["shoal_batch_size_sum"], values["shoal_batch_size_count"]


@dataclass(frozen=True)
class Measured:
    """Results of one server in one round."""

    rate: float
    """Number of successful responses per second, as measured."""
    cost: dict[str, float]
    """CPU seconds per request, by the name of the process."""
    generator: float
    """Number of cores that the load generator used."""
    batch: float
    """Mean number of images in a batch."""
    pinned: bool
    """Whether the load generator and the server used different cores."""

    @property
    def capacity(self) -> float:
        """Number of responses per second if no other process uses the server's cores."""
        if self.pinned:
            return self.rate
        return min(CORES / sum(self.cost.values()), 1 / max(self.cost.values()))


@contextmanager
def running(workers: int, cores: Sequence[int], log: pathlib.Path) -> Iterator[Workers]:
    """Runs a server with `workers` front ends on the CPU cores `cores` during the block."""
    settings = {
        "SHOAL_WORKERS": str(workers),
        "SHOAL_LOG_FORMAT": "json",
    }
    own_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the server inherits this setting
    with contextlib.ExitStack() as stack:
        try:
            command = module("benchmarks.simulated_device")
            server = stack.enter_context(serving(command, log, settings))
        finally:
            os.sched_setaffinity(0, own_cores)
        _wait_until_ready(server)
        records = [json.loads(line) for line in log.read_text().splitlines()]
        started = {r["process"]: r["pid"] for r in records if r["message"] == "started"}
        yield Workers(server, {"server": server.pid, **started})


def _wait_until_ready(server: Server) -> None:
    """Waits until `/readyz` has returned 200 `READY_IN_A_ROW` times in a row.

    Raises:
        RuntimeError: The server is not ready within `START_TIMEOUT` seconds.
    """
    in_a_row, deadline = 0, time.monotonic() + START_TIMEOUT
    while server.wait_for_port(deadline - time.monotonic()):
        try:
            urllib.request.urlopen(f"{server.address}/readyz").close()  # noqa: S310
            in_a_row += 1
        except urllib.error.HTTPError:
            in_a_row = 0
            time.sleep(0.02)
        if in_a_row == READY_IN_A_ROW:
            return
    raise RuntimeError("The server was not ready in time.")


def measure(workers: Workers, connections: int, seconds: float, pinned: bool) -> Measured:
    """Measures a server under load.

    Args:
        workers: The server.
        connections: Number of connections, each with one request in flight.
        seconds: Length of the measurement in seconds.
        pinned: Whether the load generator and the server use different cores.

    Raises:
        RuntimeError: The server rejects too many requests, or a response has an unexpected status
            or class.
    """
    endpoint = Endpoint(workers.server, raw=False)
    job = Job(
        url=endpoint.url,
        requests=endpoint.requests(SMALL),
        expected=["horse"] * len(SMALL),
        duration=seconds,
        timeout=30,
        seed=1,
        times=None,
        concurrency=connections,
    )
    before, (items, batches) = workers.cpu_seconds(), workers.batches()
    (samples,) = processes.run([job], lambda answered, failed: None)
    after, (items_after, batches_after) = workers.cpu_seconds(), workers.batches()
    count, rejected = samples.status.count(200), samples.status.count(503)
    only_these = count + rejected == len(samples.status) and not samples.different
    if not only_these or rejected > MAX_REJECTED * count:
        raise RuntimeError(f"Too many requests failed. Number by status: {Counter(samples.status)}")
    return Measured(
        rate=count / seconds,
        cost={name: (after[name] - before[name]) / count for name in before},
        generator=samples.cpu_share,
        batch=(items_after - items) / (batches_after - batches),
        pinned=pinned,
    )


def rounds(count: int, connections: int, seconds: float) -> list[dict[int, Measured]]:
    """Measures both servers in `count` rounds, and prints the results.

    Returns:
        For each round, the results by the number of front ends.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES:
        raise RuntimeError(f"This benchmark needs {CORES} usable CPU cores.")
    pinned = len(cores) > CORES
    results = []
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            workers: stack.enter_context(running(workers, cores[:CORES], folder / str(workers)))
            for workers in COUNTS
        }
        if pinned:
            os.sched_setaffinity(0, cores[CORES:])
        for number in range(-1, count):
            by_count = {}
            for workers in COUNTS if number % 2 else reversed(COUNTS):
                by_count[workers] = measure(servers[workers], connections, seconds, pinned)
            if number >= 0:  # the first round only warms up the servers
                results.append(by_count)
                print(_lines(number + 1, by_count), flush=True)
    return results


def _lines(number: int, by_count: dict[int, Measured]) -> str:
    lines = []
    for workers in COUNTS:
        measured = by_count[workers]
        cost = "  ".join(f"{name} {1e6 * spent:.0f}" for name, spent in measured.cost.items())
        lines.append(
            f"round {number}  {workers} front end{'s' if workers > 1 else ''}: "
            f"{measured.rate:7.0f}/s measured, {measured.capacity:7.0f}/s without the load "
            f"generator, which used {measured.generator:.2f} cores; "
            f"{measured.batch:4.1f} images per batch; CPU us per request: {cost}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures both servers, and prints the ratios of throughput and CPU time."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.workers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=3.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    add("--connections", type=int, default=64, help="number of connections (default: %(default)s)")
    add("--json", type=pathlib.Path, help="path of a JSON file for the results")
    options = parser.parse_args()
    exit_on_sigterm()
    results = rounds(options.rounds, options.connections, options.seconds)
    ratios = [one[2].capacity / one[1].capacity for one in results]
    costs = [sum(one[2].cost.values()) / sum(one[1].cost.values()) for one in results]
    print(
        f"2 front ends compared with 1: {statistics.median(ratios):.2f} times the throughput "
        f"({min(ratios):.2f} to {max(ratios):.2f}) and "
        f"{statistics.median(costs):.2f} times the CPU time per request"
    )
    if options.json:
        rows = [
            {"round": number, "front_ends": workers, "capacity": one.capacity, **vars(one)}
            for number, by_count in enumerate(results, 1)
            for workers, one in by_count.items()
        ]
        options.json.write_text(json.dumps({"ratios": ratios, "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
