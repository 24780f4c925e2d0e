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
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from benchmarks.process import cost, serving

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
    Endpoint("Shoal, raw body", "benchmarks.free_engine", "/predict", True),
    Endpoint("Shoal, form", "benchmarks.free_engine", "/predict", False),
    Endpoint("the usual FastAPI, form", "benchmarks.plain_fastapi", "/predict", False),
)


async def measure(
    rounds: int, seconds: float, endpoints: Sequence[Endpoint] = ENDPOINTS
) -> AsyncGenerator[dict[str, list[float]]]:
    """CPU seconds a request, by endpoint and round, as they stand after each round."""
    found: dict[str, list[float]] = {endpoint.name: [] for endpoint in endpoints}
    async with AsyncExitStack() as stack:
        modules = {endpoint.module for endpoint in endpoints}
        servers = {module: await stack.enter_async_context(serving(module)) for module in modules}
        for number in range(-1, rounds):
            for endpoint in endpoints:
                process = servers[endpoint.module]
                spent = await cost(process, endpoint.path, endpoint.raw, seconds, CONNECTIONS)
                if number >= 0:  # the first round warms up
                    found[endpoint.name].append(spent)
            if number >= 0:
                yield found


def ratios(found: dict[str, list[float]], name: str) -> Sequence[float]:
    """By round, against the endpoint that does nothing."""
    return [a / b for a, b in zip(found[name], found[NOTHING.name], strict=True)]


async def run(rounds: int, seconds: float) -> None:
    async with aclosing(measure(rounds, seconds)) as measured:
        found = [found async for found in measured][-1]
    print(f"{'':28}{'us a request':>14}{'ratio':>8}   least to most, {rounds} rounds")
    for name, spent in found.items():
        by_round = ratios(found, name)
        print(
            f"{name:28}{1e6 * statistics.median(spent):14.0f}{statistics.median(by_round):8.2f}"
            f"   {min(by_round):.2f} to {max(by_round):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_end", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    asyncio.run(run(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
