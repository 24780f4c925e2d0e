"""Where does a request's CPU time go, and what is the least that each stage could cost?

    python -m benchmarks.budget

The service computes small JPEGs in fp32 under a closed loop, with a clock on each stage
(benchmarks/stage_clock.py) and, in turns, without: the stages must add up to what the process
takes unwatched. Beside each stage stands its floor: the same work by the least that can do it,
measured in the same round. Writes budget.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import signal
import statistics
import sys
import time
import urllib.parse
from collections.abc import Callable
from contextlib import AsyncExitStack

import numpy as np
import simplejpeg

from benchmarks.baselines.network import Network
from benchmarks.outcome import machine
from benchmarks.process import Process, cost, load, serving
from benchmarks.stage_clock import STAGES
from shoal.load import images

RESULTS = pathlib.Path(__file__).parent / "results"
CONNECTIONS = 16
BATCH = 16
TIMES = 200
PICTURES = images.made_up(32)

Costs = dict[str, float]
"""CPU seconds a request."""
FLOORS = {
    "read": "an asyncio protocol with httptools",
    "route": "uvicorn alone, and FastAPI that does nothing, less that",
    "parse": "finding the end of the form",
    "decode": "libjpeg-turbo alone",
    "queue": "a future, awaited",
    "infer": f"the network alone, {BATCH} at a time",
    "respond": "json.dumps of the answer",
}


async def watched(process: Process, seconds: float) -> Costs:
    """By stage, with the clock on."""
    before = await _tell(process)
    answered = await load(process, "/predict", False, seconds, CONNECTIONS)
    after = await _tell(process)
    return {stage: (after[stage] - before[stage]) / answered for stage in STAGES}


async def whole(process: Process, path: str, seconds: float) -> float:
    """Of the process, unwatched."""
    return await cost(process, path, path != "/predict", seconds, CONNECTIONS)


async def _tell(process: Process) -> Costs:
    told: dict[str, Costs] = json.loads(await process.line(b'{"stages"', signal.SIGUSR1))
    return told["stages"]


async def floors(network: Network) -> Costs:
    """What needs no server."""
    jpeg = PICTURES[0].data
    form = images.request(urllib.parse.urlsplit("http://x/predict"), PICTURES[0], raw=False)
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
        "parse": _seconds(lambda: form.find(b"\r\n--" + images.BOUNDARY.encode())),
        "decode": _seconds(lambda: simplejpeg.decode_jpeg(jpeg, "RGB")),
        "queue": queue,
        "infer": _seconds(lambda: network.classify(zeros), TIMES // BATCH) / BATCH,
        "respond": _seconds(lambda: json.dumps(answer)),
    }


def _seconds(work: Callable[[], object], times: int = TIMES) -> float:
    """CPU of the whole process, since the network may use more than one thread."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


async def measure(rounds: int, seconds: float) -> tuple[list[Costs], list[Costs], list[float]]:
    """By round: the stages, their floors, and the whole without a clock."""
    stages: list[Costs] = []
    least: list[Costs] = []
    wholes: list[float] = []
    network = Network(BATCH)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        clocked = await enter(serving("benchmarks.stage_clock", SHOAL_PRECISION="fp32"))
        plain = await enter(serving("service", SHOAL_PRECISION="fp32"))
        bare = await enter(serving("benchmarks.bare"))
        uvicorn = await enter(serving("benchmarks.bare", "uvicorn"))
        fastapi = await enter(serving("benchmarks.plain_fastapi"))
        for number in range(-1, rounds):
            found = await watched(clocked, seconds)
            unwatched = await whole(plain, "/predict", seconds)
            floor = await floors(network)
            floor["read"] = await whole(bare, "/", seconds / 2)
            alone = await whole(uvicorn, "/", seconds / 2)
            nothing = await whole(fastapi, "/nothing", seconds / 2)
            floor["route"] = max(nothing, alone) - floor["read"]
            if number >= 0:  # the first round warms up
                stages.append(found)
                least.append(floor)
                wholes.append(unwatched)
    return stages, least, wholes


def medians(rounds: list[Costs]) -> Costs:
    return {stage: statistics.median(one[stage] for one in rounds) for stage in STAGES}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.budget",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR")
    options = parser.parse_args()
    by_round, least_by_round, wholes = asyncio.run(measure(options.rounds, options.seconds))
    stages, least = medians(by_round), medians(least_by_round)
    sums = [sum(one.values()) / total for one, total in zip(by_round, wholes, strict=True)]
    print(f"{'stage':10}{'us':>7}{'floor':>7}   the floor is")
    for stage in STAGES:
        floor = 1e6 * least[stage]
        print(f"{stage:10}{1e6 * stages[stage]:7.0f}{floor:7.1f}   {FLOORS[stage]}")
    print(f"{'together':10}{1e6 * sum(stages.values()):7.0f}{1e6 * sum(least.values()):7.0f}")
    print(f"{'unwatched':10}{1e6 * statistics.median(wholes):7.0f}")
    print(f"the stages are {100 * statistics.median(sums):.0f} % of what it takes unwatched")
    options.out.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "rounds": options.rounds,
        "stages_us": {stage: round(1e6 * seconds, 1) for stage, seconds in stages.items()},
        "floors_us": {stage: round(1e6 * seconds, 1) for stage, seconds in least.items()},
        "unwatched_us": round(1e6 * statistics.median(wholes), 1),
        "stages_of_unwatched": round(statistics.median(sums), 3),
    }
    (options.out / "budget.json").write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
