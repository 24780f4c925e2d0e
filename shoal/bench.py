"""Measure the latency and the throughput of a server under load.

    shoal bench --rate 200
    shoal bench https://shoal.example/predict --rate 100,200,400,800 --slo-ms 50 --images photos/
    shoal bench --concurrency 64 --out results/
    shoal bench --find-max --slo-ms 100

`--rate` sends requests at planned times, even if the server is slow. The latency of a request is
measured from its planned time, as independent clients would experience it.
`--concurrency` opens N connections. Each connection sends its next request when the response to its
previous request has arrived.
`--find-max` searches for the highest rate at which the 99th percentile of the latency is within the
SLO (service level objective). A request that is rejected or gets no response counts as infinitely
slow.

Before the load, the command sends each image once. Under load, each image must get the same class
again. If files are named CLASS_..., the command also reports how many of these images are
classified correctly. The command reads the API key from the environment variable SHOAL_API_KEY.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import suppress

from shoal.load.load_test import ARRIVALS, LoadTest, LoadTestFailed, find_max
from shoal.load.report import Run, plot, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `shoal bench`."""
    add = parser.add_argument
    add(
        "url",
        nargs="?",
        type=_url,
        default="http://127.0.0.1:8000/predict",
        help="URL to send images to; /predict is added to a URL without a path "
        "(default: %(default)s)",
    )
    load = parser.add_mutually_exclusive_group(required=True)
    choose = load.add_argument
    choose("--rate", type=_numbers, metavar="N[,N...]", help="requests per second (open loop)")
    choose(
        "--concurrency",
        type=_numbers,
        metavar="N[,N...]",
        help="number of connections (closed loop)",
    )
    choose("--find-max", action="store_true", help="search for the highest rate within the SLO")
    add(
        "--slo-ms",
        type=float,
        help="maximum 99th percentile of the latency, in milliseconds "
        "(default with --find-max: 100)",
    )
    add(
        "--duration",
        type=float,
        default=10.0,
        help="length of each measurement in seconds (default: %(default)s)",
    )
    add(
        "--warm-up",
        type=float,
        default=1.0,
        help="seconds of load before each measurement (default: %(default)s)",
    )
    add(
        "--arrivals",
        choices=ARRIVALS,
        default="poisson",
        help="distribution of arrival times with --rate and --find-max (default: %(default)s)",
    )
    add(
        "--images",
        type=_folder,
        metavar="FOLDER",
        help="folder of images to send (default: generated JPEGs)",
    )
    add(
        "--side",
        type=int,
        default=32,
        help="width and height of generated JPEGs, in pixels (default: %(default)s)",
    )
    add(
        "--raw",
        action="store_true",
        help="send each image as the body of a request instead of in a form",
    )
    add(
        "--processes",
        type=int,
        default=1,
        help="number of processes that send requests (default: %(default)s)",
    )
    add(
        "--timeout",
        type=float,
        default=30.0,
        help="maximum number of seconds to wait for each response (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=1,
        help="seed of the arrival times and the choice of images (default: %(default)s)",
    )
    add(
        "--out",
        type=pathlib.Path,
        metavar="FOLDER",
        help="folder to write the results and a plot to",
    )


def run(options: argparse.Namespace) -> int:
    """Measures a server. Returns the exit status."""
    slo = (options.slo_ms or (100.0 if options.find_max else 0)) / 1e3 or None
    runs: list[Run] = []
    status = 0
    try:
        planned = _runs(LoadTest(options), options, slo)
        print(table([]))
        for run in planned:
            runs.append(run)
            print(table([run]).splitlines()[-1], flush=True)
    except (LoadTestFailed, RuntimeError) as error:
        _print_error(error)
        return 1
    except KeyboardInterrupt:
        _print_error("stopped by Ctrl-C; the results of completed measurements are kept")
        status = 130
    if not runs:
        return status
    if slo is not None:
        good = [run.offered for run in runs if run.latency_of_all["p99"] <= slo]
        ms = f"{1e3 * slo:g} ms"
        if good:
            print(f"Highest rate with a p99 latency of at most {ms}: {max(good):,.0f}/s")
        else:
            print(f"The p99 latency was above {ms} at every measured load.")
    if options.out is not None:
        write(options, slo, runs)
    return status


def _runs(test: LoadTest, options: argparse.Namespace, slo: float | None) -> Iterator[Run]:
    if options.rate:
        return (test.open_loop(rate) for rate in options.rate)
    if options.concurrency:
        return (test.closed_loop(max(1, round(n))) for n in options.concurrency)
    assert slo is not None
    return find_max(test.open_loop, slo)


def write(options: argparse.Namespace, slo: float | None, runs: Sequence[Run]) -> None:
    """Writes the results as JSON, and a plot if matplotlib is installed.

    Args:
        options: Arguments of `shoal bench`.
        slo: Maximum 99th percentile of the latency, in seconds. None: no maximum.
        runs: Results of at least one measurement.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "url": options.url,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "slo_seconds": slo,
        "runs": [run.to_dict() for run in runs],
    }
    results, picture = options.out / "load_test.json", options.out / "load_test.png"
    results.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    print(results)
    try:
        plot(runs, slo, picture)
    except ModuleNotFoundError as error:
        _print_error(f"the plot was not written: {error}. Install the extra 'shoal[train]'")
    else:
        print(picture)


def _print_error(text: object) -> None:
    print(f"shoal bench: {text}", file=sys.stderr)


def _url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise argparse.ArgumentTypeError(
            f"{text} is not an http or https URL. Write the URL as http://HOST:PORT/predict"
        )
    return url._replace(path="/predict" if url.path in ("", "/") else url.path).geturl()


def _folder(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if not path.is_dir() or not any(file.is_file() for file in path.iterdir()):
        raise argparse.ArgumentTypeError(f"{text} is not a folder that contains files")
    return path


def _numbers(text: str) -> list[float]:
    with suppress(ValueError):
        values = [float(part) for part in text.split(",")]
        if all(0 < value < math.inf for value in values):
            return values
    raise argparse.ArgumentTypeError(
        f"{text} is not a list of positive numbers. Write them as 100,200,400"
    )
