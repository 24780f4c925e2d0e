"""Measures what a request costs outside the network: HTTP, form, decoding, batching, JSON.

    python -m benchmarks.front_end

The result is the CPU time of the server per request, with an engine that costs nothing. Beside it
stand a FastAPI endpoint that does nothing and one written as in tutorials (`UploadFile`, Pillow, a
response model). All run on one uvicorn with the same settings and under the same load, in turns. A
machine's speed changes, so only ratios within a round count.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.endpoint import SMALL, Endpoint, require_success
from benchmarks.processes import exit_on_sigterm
from benchmarks.servers import module, serving

CONNECTIONS = 16


@dataclass(frozen=True)
class Case:
    """An endpoint to measure: `path` of the server that `python -m module` runs."""

    name: str
    module: str
    path: str
    raw: bool
    """Send images as the body instead of in a form."""


NOTHING = Case("FastAPI that does nothing", "benchmarks.plain_fastapi", "/nothing", True)
CASES = (
    NOTHING,
    Case("Shoal, raw body", "benchmarks.free_engine", "/predict", True),
    Case("Shoal, form", "benchmarks.free_engine", "/predict", False),
    Case("FastAPI as in tutorials, form", "benchmarks.plain_fastapi", "/predict", False),
)


def measure(
    rounds: int, seconds: float, cases: Sequence[Case] = CASES
) -> Iterator[dict[str, list[float]]]:
    """Measures endpoints in turns.

    Args:
        rounds: Number of rounds. One more, before them, warms up.
        seconds: Length of a measurement.
        cases: The endpoints.

    Yields:
        After each round, name -> CPU seconds per request in each round so far.
    """
    results: dict[str, list[float]] = {case.name: [] for case in cases}
    with ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {
            name: stack.enter_context(serving(module(name), folder / name))
            for name in {case.module for case in cases}
        }
        endpoints = {
            case.name: Endpoint(servers[case.module], case.raw, case.path) for case in cases
        }
        for endpoint in endpoints.values():
            endpoint.wait()
        for number in range(-1, rounds):
            for name, endpoint in endpoints.items():
                measurement = endpoint.closed_loop(SMALL, CONNECTIONS, seconds)
                require_success(measurement.run)
                if number >= 0:  # the first round warms up
                    results[name].append(measurement.cpu)
            if number >= 0:
                yield results


def ratios(results: dict[str, list[float]], name: str) -> Sequence[float]:
    """Returns the cost of an endpoint in each round, relative to the one that does nothing."""
    return [a / b for a, b in zip(results[name], results[NOTHING.name], strict=True)]


def main() -> None:
    """Measures all endpoints and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_end", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    exit_on_sigterm()
    *_, results = measure(options.rounds, options.seconds)
    print(f"{'':30}{'us per request':>14}{'ratio':>8}   min to max, {options.rounds} rounds")
    for name, costs in results.items():
        by_round = ratios(results, name)
        print(
            f"{name:30}{1e6 * statistics.median(costs):14.0f}{statistics.median(by_round):8.2f}"
            f"   {min(by_round):.2f} to {max(by_round):.2f}"
        )


if __name__ == "__main__":
    main()
