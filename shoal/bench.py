"""How fast does a server answer, and how many requests can it take?

    shoal bench --rate 200
    shoal bench https://shoal.example/predict --rate 100,200,400,800 --slo-ms 50 --images photos/
    shoal bench --concurrency 64 --out results/
    shoal bench --find-max --slo-ms 100

`--rate` sends at given moments, whether or not the server keeps up, and counts latency from the
moment a request was meant to be sent: what independent callers see. `--concurrency` keeps so many
requests under way: what a queue of workers sees. `--find-max` looks for the highest rate that keeps
the 99th percentile of all requests within the SLO, refused ones counting as never answered.

Before the load each image is sent once; under load it must get the same class again. Files named
`<class>_...` also tell how many classes are right. Where a server wants a key, it is read from the
environment variable SHOAL_API_KEY.
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

from shoal.load.load_test import ARRIVALS, LoadTest, Trouble, find_max
from shoal.load.report import Run, plot, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "url",
        nargs="?",
        type=_url,
        default="http://127.0.0.1:8000/predict",
        help="where images are sent; /predict where it names no path (%(default)s)",
    )
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=_numbers, metavar="N[,N...]", help="open loop: requests/s")
    load.add_argument(
        "--concurrency", type=_numbers, metavar="N[,N...]", help="closed loop: connections"
    )
    load.add_argument("--find-max", action="store_true", help="the highest rate within the SLO")
    add("--slo-ms", type=float, help="latency aimed at, 99th percentile (--find-max: 100)")
    add("--duration", type=float, default=10.0, help="seconds a run is measured (%(default)s)")
    add("--warm-up", type=float, default=1.0, help="seconds before that (%(default)s)")
    add("--arrivals", choices=ARRIVALS, default="poisson", help="open loop (%(default)s)")
    add("--images", type=_folder, metavar="FOLDER", help="files to send (made-up JPEGs)")
    add("--side", type=int, default=32, help="width and height of made-up JPEGs (%(default)s)")
    add("--raw", action="store_true", help="the image as the body, not as a form")
    add("--processes", type=int, default=1, help="that generate the load (%(default)s)")
    add("--timeout", type=float, default=30.0, help="seconds to wait for an answer (%(default)s)")
    add("--seed", type=int, default=1, help="of arrivals and choice of images (%(default)s)")
    add("--out", type=pathlib.Path, metavar="FOLDER", help="for figures and a plot (none)")


def run(options: argparse.Namespace) -> int:
    slo = (options.slo_ms or (100.0 if options.find_max else 0)) / 1e3 or None
    runs: list[Run] = []
    status = 0
    try:
        planned = _planned(LoadTest(options), options, slo)
        print(table([]))
        for run in planned:
            runs.append(run)
            print(table([run]).splitlines()[-1], flush=True)
    except (Trouble, RuntimeError) as trouble:
        _complain(trouble)
        return 1
    except KeyboardInterrupt:
        _complain("stopped; what was measured so far is kept")
        status = 130
    if not runs:
        return status
    if slo is not None:
        good = [run.offered for run in runs if run.latency_of_all["p99"] <= slo]
        most = f"{max(good):,.0f}/s" if good else "none of these loads"
        print(f"Within {1e3 * slo:g} ms at the 99th percentile of all requests: {most}")
    if options.out is not None:
        write(options, slo, runs)
    return status


def _planned(test: LoadTest, options: argparse.Namespace, slo: float | None) -> Iterator[Run]:
    if options.rate:
        return (test.open_loop(rate) for rate in options.rate)
    if options.concurrency:
        return (test.closed_loop(max(1, round(n))) for n in options.concurrency)
    assert slo is not None
    return find_max(test.open_loop, slo)


def write(options: argparse.Namespace, slo: float | None, runs: Sequence[Run]) -> None:
    """The figures for programs, and a plot where there is something to draw it."""
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "url": options.url,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "slo_seconds": slo,
        "runs": [run.as_dict() for run in runs],
    }
    figures, picture = options.out / "load_test.json", options.out / "load_test.png"
    figures.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    print(figures)
    try:
        plot(runs, slo, picture)
    except ModuleNotFoundError as error:
        _complain(f"no plot: {error}; install the extra 'shoal[train]' for one")
    else:
        print(picture)


def _complain(text: object) -> None:
    print(f"shoal bench: {text}", file=sys.stderr)


def _url(text: str) -> str:
    url = urllib.parse.urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise argparse.ArgumentTypeError(f"{text} is no URL: http://HOST:PORT/predict")
    return url._replace(path="/predict" if url.path in ("", "/") else url.path).geturl()


def _folder(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if not path.is_dir() or not any(file.is_file() for file in path.iterdir()):
        raise argparse.ArgumentTypeError(f"{text} is no folder of images")
    return path


def _numbers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not values or min(values) <= 0 or max(values) == math.inf:
        raise ValueError
    return values
