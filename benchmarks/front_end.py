"""What does a request cost in front of the network: HTTP, form, decoding, batching, JSON?

    python -m benchmarks.front_end

CPU time of the server's process for each request, with an engine that costs nothing, next to a
FastAPI endpoint that does nothing and to one written the usual way (`UploadFile`, Pillow, a
response model), each on one uvicorn with the same settings and under the same load. Rounds take
turns, and what counts is the ratio within a round: machines differ, and are busy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pathlib
import statistics
import sys
import urllib.parse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shoal.load import images
from shoal.load.generator import Generator, Job

ROOT = pathlib.Path(__file__).parent.parent
TICK = 1 / os.sysconf("SC_CLK_TCK")
CONNECTIONS = 16


@dataclass(frozen=True)
class Endpoint:
    """`python -m module` serves it and logs its address; `path` is what is asked for."""

    name: str
    module: str
    path: str
    raw: bool


NOTHING = Endpoint("FastAPI that does nothing", "benchmarks.plain_fastapi", "/nothing", True)
ENDPOINTS = (
    NOTHING,
    Endpoint("Shoal, raw body", "tests.e2e.scripted", "/predict", True),
    Endpoint("Shoal, form", "tests.e2e.scripted", "/predict", False),
    Endpoint("the usual FastAPI, form", "benchmarks.plain_fastapi", "/predict", False),
)


@asynccontextmanager
async def serving(module: str) -> AsyncIterator[tuple[str, int]]:
    """The address and the process id of a fresh server."""
    environment = {**os.environ, "SHOAL_PORT": "0", "SHOAL_LOG_LEVEL": "info"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if b"running on" in line:
                break
        else:
            raise SystemExit(f"{module} did not start")
        rest = asyncio.create_task(process.stdout.read())
        address = line.decode().partition("running on ")[2].split()[0].rstrip('",')
        yield address, process.pid
    finally:
        process.terminate()
        await process.wait()
        await rest


async def cost(address: str, pid: int, endpoint: Endpoint, seconds: float) -> float:
    """CPU seconds of the server a request."""
    url = address + endpoint.path
    pictures = images.made_up(32)
    split = urllib.parse.urlsplit(url)
    job = Job(
        url=url,
        requests=[images.request(split, picture, endpoint.raw) for picture in pictures],
        expected=[None] * len(pictures),
        duration=seconds,
        timeout=30,
        seed=1,
        times=None,
        concurrency=CONNECTIONS,
    )
    before = cpu_seconds(pid)
    outcome = await Generator(job, lambda answered, failed: None).run()
    spent = cpu_seconds(pid) - before
    if set(outcome.status) != {200}:
        raise SystemExit(f"{endpoint.name}: answers other than 200: {set(outcome.status)}")
    return spent / len(outcome.status)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


async def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """CPU seconds a request, by endpoint and round."""
    found: dict[str, list[float]] = {endpoint.name: [] for endpoint in ENDPOINTS}
    async with serving("tests.e2e.scripted") as shoal, serving("benchmarks.plain_fastapi") as plain:
        servers = {"tests.e2e.scripted": shoal, "benchmarks.plain_fastapi": plain}
        for number in range(-1, rounds):
            for endpoint in ENDPOINTS:
                spent = await cost(*servers[endpoint.module], endpoint, seconds)
                if number >= 0:  # the first round warms up
                    found[endpoint.name].append(spent)
    return found


def ratios(found: dict[str, list[float]], name: str) -> Sequence[float]:
    """By round, against the endpoint that does nothing."""
    return [a / b for a, b in zip(found[name], found[NOTHING.name], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_end", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds, options.seconds))
    print(f"{'':28}{'us a request':>14}{'ratio':>8}   least to most, {options.rounds} rounds")
    for name, spent in found.items():
        by_round = ratios(found, name)
        print(
            f"{name:28}{1e6 * statistics.median(spent):14.0f}{statistics.median(by_round):8.2f}"
            f"   {min(by_round):.2f} to {max(by_round):.2f}"
        )


if __name__ == "__main__":
    main()
