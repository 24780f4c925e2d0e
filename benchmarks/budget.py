"""Measures the CPU time of each stage of a request, and the least that each could cost.

    python -m benchmarks.budget

The service computes small JPEGs in fp32 under a closed loop, in turns with a clock on each stage
(benchmarks/stage_clock.py) and without. The stages must add up to the cost without the clock.
Beside each stage stands its floor: the same work with the cheapest means we know, measured in the
same round. Writes budget.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import signal
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import simplejpeg

from benchmarks.baselines.network import Network
from benchmarks.endpoint import SMALL, Endpoint, require_success
from benchmarks.processes import exit_on_sigterm
from benchmarks.report import machine
from benchmarks.servers import module, serving
from benchmarks.stage_clock import STAGES
from shoal.load import images

RESULTS = pathlib.Path(__file__).parent / "results"
CONNECTIONS = 16
BATCH = 16
TIMES = 200
"""Repetitions of each measurement without a server."""

Costs = dict[str, float]
"""Stage -> CPU seconds per request."""
FLOORS = {
    "read": "an asyncio protocol with httptools",
    "route": "uvicorn or FastAPI that does nothing, without reading",
    "parse": "finding the end of the form",
    "decode": "libjpeg-turbo alone",
    "queue": "awaiting a future",
    "infer": f"the network alone, in batches of {BATCH}",
    "respond": "json.dumps of the answer",
}


def stage_costs(endpoint: Endpoint, seconds: float) -> Costs:
    """Returns the cost of each stage, as the clock in the server says."""
    before = _read_clock(endpoint)
    answered = _load(endpoint, seconds)[0]
    after = _read_clock(endpoint)
    return {stage: (after[stage] - before[stage]) / answered for stage in STAGES}


def total_cost(endpoint: Endpoint, seconds: float) -> float:
    """Returns the CPU seconds of the server per request."""
    return _load(endpoint, seconds)[1]


def _load(endpoint: Endpoint, seconds: float) -> tuple[int, float]:
    """Returns the number of requests and the CPU seconds of each."""
    measurement = endpoint.closed_loop(SMALL, CONNECTIONS, seconds)
    require_success(measurement.run)
    return sum(measurement.run.statuses.values()), measurement.cpu


def _read_clock(endpoint: Endpoint) -> Costs:
    stages: Costs = json.loads(endpoint.server.signal(signal.SIGUSR1, '{"stages"'))["stages"]
    return stages


async def floors_without_server(network: Network) -> Costs:
    """Returns the floors of the stages that need no server."""
    jpeg = SMALL[0].data
    form = images.request(urllib.parse.urlsplit("http://x/predict"), SMALL[0], raw=False)
    zeros = [np.zeros((32, 32, 3), np.uint8)] * BATCH
    answer = {"class": "horse", "probabilities": dict.fromkeys(map(str, range(10)), 0.123456)}
    loop = asyncio.get_running_loop()
    began = time.process_time()
    for _ in range(TIMES):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
    queue = (time.process_time() - began) / TIMES
    return {
        "parse": _cpu_seconds(lambda: form.find(b"\r\n--" + images.BOUNDARY.encode())),
        "decode": _cpu_seconds(lambda: simplejpeg.decode_jpeg(jpeg, "RGB")),
        "queue": queue,
        "infer": _cpu_seconds(lambda: network.classify(zeros), TIMES // BATCH) / BATCH,
        "respond": _cpu_seconds(lambda: json.dumps(answer)),
    }


def _cpu_seconds(work: Callable[[], object], times: int = TIMES) -> float:
    """Returns the CPU time of one call, on all threads, since the network may use several."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def measure(rounds: int, seconds: float) -> tuple[list[Costs], list[Costs], list[float]]:
    """Returns, for each round, the stages, their floors, and the cost without a clock."""
    stages: list[Costs] = []
    floors: list[Costs] = []
    totals: list[float] = []
    network = Network(BATCH)
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def endpoint(path: str, *program: str, **settings: str) -> Endpoint:
            log = folder / "-".join(program)
            server = stack.enter_context(serving(module(*program), log, settings))
            started = Endpoint(server, raw=path != "/predict", path=path)
            started.wait()
            return started

        clocked = endpoint("/predict", "benchmarks.stage_clock", SHOAL_PRECISION="fp32")
        plain = endpoint("/predict", "service", SHOAL_PRECISION="fp32")
        bare = endpoint("/", "benchmarks.bare")
        uvicorn = endpoint("/", "benchmarks.bare", "uvicorn")
        fastapi = endpoint("/nothing", "benchmarks.plain_fastapi")
        for number in range(-1, rounds):
            clocked_costs = stage_costs(clocked, seconds)
            total = total_cost(plain, seconds)
            floor = asyncio.run(floors_without_server(network))
            floor["read"] = total_cost(bare, seconds / 2)
            routing = [total_cost(server, seconds / 2) for server in (uvicorn, fastapi)]
            floor["route"] = max(routing) - floor["read"]
            if number >= 0:  # the first round warms up
                stages.append(clocked_costs)
                floors.append(floor)
                totals.append(total)
    return stages, floors, totals


def medians(rounds: list[Costs]) -> Costs:
    """Returns the median cost of each stage."""
    return {stage: statistics.median(costs[stage] for costs in rounds) for stage in STAGES}


def main() -> int:
    """Measures, prints a table and writes budget.json. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    exit_on_sigterm()
    by_round, floors_by_round, totals = measure(options.rounds, options.seconds)
    stages, floors = medians(by_round), medians(floors_by_round)
    total = statistics.median(totals)
    shares = [sum(costs.values()) / one for costs, one in zip(by_round, totals, strict=True)]
    print(f"{'stage':13}{'us':>7}{'floor':>7}   the floor is")
    for stage in STAGES:
        floor = 1e6 * floors[stage]
        print(f"{stage:13}{1e6 * stages[stage]:7.0f}{floor:7.1f}   {FLOORS[stage]}")
    print(f"{'sum':13}{1e6 * sum(stages.values()):7.0f}{1e6 * sum(floors.values()):7.0f}")
    print(f"{'without clock':13}{1e6 * total:7.0f}")
    print(
        f"The stages add up to {100 * statistics.median(shares):.0f} % of the cost without clock."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "rounds": options.rounds,
        "stages_us": {stage: round(1e6 * seconds, 1) for stage, seconds in stages.items()},
        "floors_us": {stage: round(1e6 * seconds, 1) for stage, seconds in floors.items()},
        "unwatched_us": round(1e6 * total, 1),
        "stages_of_unwatched": round(statistics.median(shares), 3),
    }
    (options.out / "budget.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
