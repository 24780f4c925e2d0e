"""Measures the CPU time of each stage of a request, and compares it with a lower limit.

    python -m benchmarks.budget

A stage is a part of the work for a request, such as decoding the image. The service classifies
small JPEGs in fp32, with a fixed number of requests in flight. In each round, the CPU time is
measured twice: with a clock for each stage (benchmarks/stage_clock.py), and without clocks. The sum
of the stages should be about the CPU time without clocks. The lower limit of a stage is called the
floor of the stage. The floor is the CPU time of the cheapest known implementation of the same work,
and is measured in the same round. The results are written to budget.json.
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
"""Number of repetitions in each measurement without a server."""

Costs = dict[str, float]
"""CPU seconds per request, by stage."""
FLOORS = {
    "read": "an asyncio protocol that parses with httptools",
    "route": "uvicorn or FastAPI with a fixed response, minus the floor of `read`",
    "parse": "a search for the end of the form",
    "decode": "libjpeg-turbo alone",
    "queue": "waiting for a future",
    "infer": f"the neural network alone, in batches of {BATCH}",
    "respond": "json.dumps of the response",
}
"""Cheapest known implementation of each stage. Its CPU time is the floor of the stage."""


def stage_costs(endpoint: Endpoint, seconds: float) -> Costs:
    """Puts the server with clocks under load. Returns CPU seconds per request, by stage."""
    before = _read_clock(endpoint)
    answered = _load(endpoint, seconds)[0]
    after = _read_clock(endpoint)
    return {stage: (after[stage] - before[stage]) / answered for stage in STAGES}


def total_cost(endpoint: Endpoint, seconds: float) -> float:
    """Puts a server under load. Returns the CPU seconds of the server per request."""
    return _load(endpoint, seconds)[1]


def _load(endpoint: Endpoint, seconds: float) -> tuple[int, float]:
    """Puts a server under load. Returns the number of requests, and CPU seconds per request."""
    measurement = endpoint.closed_loop(SMALL, CONNECTIONS, seconds)
    require_success(measurement.run)
    return sum(measurement.run.statuses.values()), measurement.cpu


def _read_clock(endpoint: Endpoint) -> Costs:
    stages: Costs = json.loads(endpoint.server.signal(signal.SIGUSR1, '{"stages"'))["stages"]
    return stages


async def floors_without_server(network: Network) -> Costs:
    """Returns the floors that can be measured without a server."""
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
    """Returns the CPU seconds of one call of `work`, including all threads of this process."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def measure(rounds: int, seconds: float) -> tuple[list[Costs], list[Costs], list[float]]:
    """Measures the service and the floors.

    Args:
        rounds: Number of rounds.
        seconds: Length of each measurement in seconds.

    Returns:
        Three lists with one entry for each round: the CPU seconds of the stages, the floors of the
        stages, and the CPU seconds of a request without clocks.
    """
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
            if number >= 0:  # the first round only warms up the servers
                stages.append(clocked_costs)
                floors.append(floor)
                totals.append(total)
    return stages, floors, totals


def medians(rounds: list[Costs]) -> Costs:
    """Returns the median CPU seconds of each stage."""
    return {stage: statistics.median(costs[stage] for costs in rounds) for stage in STAGES}


def main() -> int:
    """Measures all stages, prints a table and writes budget.json. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="number of rounds (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=2.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    add(
        "--out",
        type=pathlib.Path,
        default=RESULTS,
        metavar="DIR",
        help="folder for budget.json (default: %(default)s)",
    )
    options = parser.parse_args()
    exit_on_sigterm()
    by_round, floors_by_round, totals = measure(options.rounds, options.seconds)
    stages, floors = medians(by_round), medians(floors_by_round)
    total = statistics.median(totals)
    shares = [sum(costs.values()) / one for costs, one in zip(by_round, totals, strict=True)]
    print(f"{'stage':13}{'us':>7}{'floor':>7}   meaning of the floor")
    for stage in STAGES:
        floor = 1e6 * floors[stage]
        print(f"{stage:13}{1e6 * stages[stage]:7.0f}{floor:7.1f}   {FLOORS[stage]}")
    print(f"{'sum':13}{1e6 * sum(stages.values()):7.0f}{1e6 * sum(floors.values()):7.0f}")
    print(f"{'without clock':13}{1e6 * total:7.0f}")
    print(
        f"The sum of the stages is {100 * statistics.median(shares):.0f} % of the CPU time "
        "without clocks."
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
