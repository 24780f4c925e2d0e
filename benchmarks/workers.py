"""How much more do two front ends do than one?

    python -m benchmarks.workers

A device that sleeps (benchmarks/simulated_device.py) leaves the cores to the front ends. One
process that does it all and two front ends with an engine process take turns under the same load,
and what counts are ratios within a round: machines differ, and are busy.

Two cores are given to the servers. On a machine with more the load generator has the others, and
the throughput is what was measured. On two cores generator and server share them; then the
generator's time is subtracted: the throughput is what the server would do with both cores for
itself, computed from what a request costs each of its processes: as many requests as the cores
have time for, and no more than the busiest process can do on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.process import ROOT, cpu_seconds
from shoal.load import fleet, images
from shoal.load.generator import Job

CORES = 2
MOST_REFUSED = 0.02
"""Share of requests: more would be another load than was meant."""
COUNTS = (1, 2)


@dataclass(frozen=True)
class Server:
    """`processes`: name -> id."""

    url: str
    processes: dict[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self.processes.items()}

    def batches(self) -> tuple[float, float]:
        """Items and batches so far."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:  # noqa: S310  # our own
            families = text_string_to_metric_families(answer.read().decode())
        told = {sample.name: sample.value for family in families for sample in family.samples}
        return told["shoal_batch_size_sum"], told["shoal_batch_size_count"]


@dataclass(frozen=True)
class Measured:
    rate: float
    """Answers a second."""
    cost: dict[str, float]
    """CPU seconds of each process a request."""
    generator: float
    """Cores that the load generator took."""
    batch: float
    """Images a batch, on average."""
    pinned: bool

    @property
    def capacity(self) -> float:
        """Answers a second with the cores for itself."""
        if self.pinned:
            return self.rate
        return min(CORES / sum(self.cost.values()), 1 / max(self.cost.values()))


@asynccontextmanager
async def serving(workers: int, cores: Sequence[int]) -> AsyncIterator[Server]:
    """A fresh server on `cores`, ready."""
    settings = {
        "SHOAL_PORT": "0",
        "SHOAL_WORKERS": str(workers),
        "SHOAL_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.simulated_device"),
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    assert process.stdout is not None
    processes = {"server": process.pid}
    waiting_for = {"running": workers, "ready": 1}
    url = ""
    try:
        while any(waiting_for.values()):
            line = await process.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            record = json.loads(line)
            if record["message"] == "started":
                processes[record["process"]] = record["pid"]
            elif "running on" in record["message"]:
                url = record["message"].partition("running on ")[2].split()[0]
                waiting_for["running"] -= 1
            elif record["message"] == "ready":
                waiting_for["ready"] -= 1
        rest = asyncio.create_task(process.stdout.read())
        await asyncio.to_thread(_ready, url)
        yield Server(url, processes)
    finally:
        process.terminate()
        await process.wait()
        await rest


def _ready(url: str) -> None:
    """Whoever is asked: a front end may have heard of the engine later than another."""
    in_a_row = 0
    while in_a_row < 12:
        try:
            urllib.request.urlopen(f"{url}/readyz").close()  # noqa: S310  # our own
            in_a_row += 1
        except urllib.error.HTTPError:
            in_a_row = 0


def measure(server: Server, connections: int, seconds: float, pinned: bool) -> Measured:
    url = f"{server.url}/predict"
    pictures = images.made_up(32)
    split = urllib.parse.urlsplit(url)
    requests = [images.request(split, picture, raw=False) for picture in pictures]
    job = Job(
        url=url,
        requests=requests,
        expected=["horse"] * len(requests),
        duration=seconds,
        timeout=30,
        seed=1,
        times=None,
        concurrency=connections,
    )
    before, (items, batches) = server.cpu_seconds(), server.batches()
    (outcome,) = fleet.run([job], lambda answered, failed: None)
    after, (items_after, batches_after) = server.cpu_seconds(), server.batches()
    count, refused = outcome.status.count(200), outcome.status.count(503)
    all_told = count + refused == len(outcome.status) and not outcome.different
    if not all_told or refused > MOST_REFUSED * count:
        raise SystemExit(f"answers other than a horse: {Counter(outcome.status)}")
    return Measured(
        rate=count / seconds,
        cost={name: (after[name] - before[name]) / count for name in before},
        generator=outcome.cpu_share,
        batch=(items_after - items) / (batches_after - batches),
        pinned=pinned,
    )


async def rounds(count: int, connections: int, seconds: float) -> list[dict[int, Measured]]:
    """By round: number of front ends -> what was measured."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < CORES:
        raise SystemExit(f"this needs {CORES} cores")
    pinned = len(cores) > CORES
    found = []
    async with serving(1, cores[:CORES]) as one, serving(2, cores[:CORES]) as two:
        servers = dict(zip(COUNTS, (one, two), strict=True))
        if pinned:
            os.sched_setaffinity(0, cores[CORES:])
        for number in range(-1, count):
            by_count = {}
            for workers in COUNTS if number % 2 else reversed(COUNTS):
                by_count[workers] = await asyncio.to_thread(
                    measure, servers[workers], connections, seconds, pinned
                )
            if number >= 0:  # the first round warms up
                found.append(by_count)
                print(_told(number + 1, by_count), flush=True)
    return found


def _told(number: int, found: dict[int, Measured]) -> str:
    lines = []
    for workers in COUNTS:
        one = found[workers]
        cost = "  ".join(f"{name} {1e6 * spent:.0f}" for name, spent in one.cost.items())
        lines.append(
            f"round {number}  {workers} front end{'s' if workers > 1 else ''}: "
            f"{one.rate:7.0f}/s measured, {one.capacity:7.0f}/s by itself, "
            f"generator {one.generator:.2f} cores, {one.batch:4.1f} images a batch; "
            f"us a request: {cost}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", type=pathlib.Path, help="where to write what was found")
    options = parser.parse_args()
    found = asyncio.run(rounds(options.rounds, options.connections, options.seconds))
    ratios = [one[2].capacity / one[1].capacity for one in found]
    costs = [sum(one[2].cost.values()) / sum(one[1].cost.values()) for one in found]
    print(
        f"from 1 to 2 front ends: {statistics.median(ratios):.2f} times the throughput "
        f"({min(ratios):.2f} to {max(ratios):.2f}), "
        f"{statistics.median(costs):.2f} times the CPU a request"
    )
    if options.json:
        rows = [
            {"round": number, "front_ends": workers, "capacity": one.capacity, **vars(one)}
            for number, by_count in enumerate(found, 1)
            for workers, one in by_count.items()
        ]
        options.json.write_text(json.dumps({"ratios": ratios, "measured": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
