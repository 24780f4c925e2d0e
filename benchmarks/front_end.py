"""Measures the CPU time of a request outside the neural network.

    python -m benchmarks.front_end

This CPU time includes HTTP, parsing of the form, decoding, batching and JSON. The service runs with
an engine that takes no CPU time. The service is compared with two FastAPI endpoints. The first
endpoint sends a fixed response. The second endpoint is written as in tutorials, with `UploadFile`,
Pillow and a response model. All endpoints run on uvicorn, and receive the same load one after the
other. The speed of a machine changes, so only ratios within a round are meaningful.
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
"""Number of connections, each with one request in flight."""


@dataclass(frozen=True)
class Case:
    """An endpoint to measure."""

    name: str
    module: str
    """Module that runs the server."""
    path: str
    """Path of the URL."""
    raw: bool
    """Whether an image is the body of a request (True) or in a form (False)."""


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
    """Measures endpoints one after the other, in rounds.

    Args:
        rounds: Number of measured rounds. An additional first round warms up the servers.
        seconds: Length of each measurement in seconds.
        cases: Endpoints to measure.

    Yields:
        After each round, the CPU seconds per request in all rounds, by the name of the endpoint.
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
                if number >= 0:  # the first round only warms up the servers
                    results[name].append(measurement.cpu)
            if number >= 0:
                yield results


def ratios(results: dict[str, list[float]], name: str) -> Sequence[float]:
    """Returns the CPU time of an endpoint divided by the CPU time of `NOTHING`, for each round."""
    return [a / b for a, b in zip(results[name], results[NOTHING.name], strict=True)]


def main() -> None:
    """Measures all endpoints and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="number of rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
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
