"""How fast does a server answer, and how many requests can it take?

    python -m benchmarks.load_test --rate 200
    python -m benchmarks.load_test --rate 100,200,400,800 --slo-ms 50 --images photos/
    python -m benchmarks.load_test --concurrency 64
    python -m benchmarks.load_test --find-max --slo-ms 100

`--rate` sends at given moments, whether or not the server keeps up, and counts latency from the
moment a request was meant to be sent: what independent callers see. `--concurrency` keeps so many
requests under way: what a queue of workers sees. `--find-max` looks for the highest rate that keeps
the 99th percentile of all requests within the SLO, refused ones counting as never answered.

Before the load each image is sent once; under load it must get the same class again. Files named
`<class>_...` also tell how many classes are right. Writes load_test.json and load_test.png.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import pathlib
import platform
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from benchmarks.load import fleet, images
from benchmarks.load.generator import Job
from benchmarks.load.report import Run, plot, summarise, table

RESULTS = pathlib.Path(__file__).parent / "results"
ARRIVALS = {"poisson": fleet.poisson, "constant": fleet.constant}
FIRST_RATE, LEAST_RATE = 50.0, 1.0
CLOSE_ENOUGH = 1.05
"""`--find-max` stops when the highest good rate and the lowest bad one are within this ratio."""


class Trouble(Exception):
    """The load test cannot be run; the message says why."""


class LoadTest:
    """Requests that are ready to be sent, and the ways to send them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        url = urllib.parse.urlsplit(options.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise Trouble(f"{options.url} is no URL: http://HOST:PORT/predict")
        if options.images is not None and not options.images.is_dir():
            raise Trouble(f"{options.images} is no folder: --images DIR")
        pictures = images.read(options.images) if options.images else images.made_up(options.side)
        requests = [images.request(url, picture, options.raw) for picture in pictures]
        answers = [_ask(url, request) for request in requests]
        kept = [number for number, (status, _) in enumerate(answers) if status == 200]
        if not kept:
            status, body = answers[0]
            raise Trouble(f"{options.url} answers {status} to {pictures[0].name}: {body[:300]!r}")
        if len(kept) < len(pictures):
            print(f"{len(pictures) - len(kept)} of {len(pictures)} images are refused: left out")
        self._requests = [requests[number] for number in kept]
        self._expected = [images.class_of(answers[number][1]) for number in kept]
        labels = [pictures[number].label for number in kept]
        known = [i for i, label in enumerate(labels) if label is not None]
        if known:
            right = sum(labels[i] == self._expected[i] for i in known)
            print(f"{right} of {len(known)} labelled images are classified as their names say")

    def open_loop(self, rate: float) -> Run:
        """Requests at `rate`, whether or not the server keeps up."""
        options, processes = self._options, self._options.processes
        arrive = ARRIVALS[options.arrivals]
        seconds = options.warm_up + options.duration
        times = [arrive(rate / processes, seconds, options.seed + k) for k in range(processes)]
        jobs = [self._job(times=moments, seed=k) for k, moments in enumerate(times)]
        return self._run(f"{rate:,.0f}/s {options.arrivals}", rate, jobs)

    def closed_loop(self, concurrency: int) -> Run:
        """`concurrency` requests under way at any moment."""
        processes = min(self._options.processes, concurrency)
        shares = [
            concurrency // processes + (k < concurrency % processes) for k in range(processes)
        ]
        jobs = [self._job(concurrency=share, seed=k) for k, share in enumerate(shares)]
        return self._run(f"{concurrency} connections", None, jobs)

    def _job(self, seed: int, times: list[float] | None = None, concurrency: int = 0) -> Job:
        options = self._options
        return Job(
            url=options.url,
            requests=self._requests,
            expected=self._expected,
            duration=options.warm_up + options.duration,
            timeout=options.timeout,
            seed=seed,
            times=times,
            concurrency=concurrency,
        )

    def _run(self, load: str, rate: float | None, jobs: list[Job]) -> Run:
        options = self._options
        end = options.warm_up + options.duration
        with _progress(load, end) as progress:
            outcomes = fleet.run(jobs, progress)
        return summarise(load, rate, outcomes, options.warm_up, end)


def find_max(measure: Callable[[float], Run], slo: float) -> Iterator[Run]:
    """Runs at rates that close in on the highest that keeps the SLO."""
    low, high, rate = 0.0, math.inf, FIRST_RATE
    while high > max(CLOSE_ENOUGH * low, LEAST_RATE):
        run = measure(rate)
        yield run
        if run.latency_of_all["p99"] <= slo:
            low = rate
        else:
            high = rate
        if low == 0:
            rate = high / 4
        elif high == math.inf:
            rate = 2 * low
        else:
            rate = (low + high) / 2


@contextmanager
def _progress(load: str, seconds: float) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal."""
    started = time.monotonic()
    form = "{desc}: {bar}{n:.0f}/{total:.0f} s{postfix}"
    with tqdm(
        total=seconds, desc=load, leave=False, bar_format=form, disable=not sys.stderr.isatty()
    ) as bar:

        def progress(answered: int, failed: int) -> None:
            bar.n = min(time.monotonic() - started, seconds)
            bar.set_postfix_str(f"{answered:,} answered, {failed:,} not")

        yield progress


def _ask(url: urllib.parse.SplitResult, request: bytes) -> tuple[int, bytes]:
    """One request, as it will be sent under load, and its answer."""
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=30)
    try:
        connection.connect()
        connection.sock.sendall(request)
        response = http.client.HTTPResponse(connection.sock, method="POST")
        response.begin()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Trouble(f"{url.geturl()} does not answer: {error}. Is the server running?") from error
    finally:
        connection.close()


def _numbers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not values or min(values) <= 0 or max(values) == math.inf:
        raise ValueError
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load_test",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", nargs="?", default="http://127.0.0.1:8000/predict", help="(%(default)s)")
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
    add("--images", type=pathlib.Path, metavar="DIR", help="files to send (made-up JPEGs)")
    add("--side", type=int, default=32, help="width and height of made-up JPEGs (%(default)s)")
    add("--raw", action="store_true", help="the image as the body, not as a form")
    add("--processes", type=int, default=1, help="that generate the load (%(default)s)")
    add("--timeout", type=float, default=30.0, help="seconds to wait for an answer (%(default)s)")
    add("--seed", type=int, default=1, help="of arrivals and choice of images (%(default)s)")
    add("--out", type=pathlib.Path, default=RESULTS, metavar="DIR", help="(%(default)s)")
    return parser


def main() -> int:
    options = _parser().parse_args()
    slo = (options.slo_ms or (100.0 if options.find_max else 0)) / 1e3 or None
    runs: list[Run] = []
    try:
        test = LoadTest(options)
        if options.rate:
            planned: Iterator[Run] = (test.open_loop(rate) for rate in options.rate)
        elif options.concurrency:
            planned = (test.closed_loop(max(1, round(n))) for n in options.concurrency)
        else:
            assert slo is not None
            planned = find_max(test.open_loop, slo)
        print(table([]))
        for run in planned:
            runs.append(run)
            print(table([run]).splitlines()[-1], flush=True)
    except (Trouble, RuntimeError) as trouble:
        print(trouble, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was measured so far is kept", file=sys.stderr)
    if not runs:
        return 1
    if slo is not None:
        good = [run.offered for run in runs if run.latency_of_all["p99"] <= slo]
        most = f"{max(good):,.0f}/s" if good else "none of these loads"
        print(f"Within {1e3 * slo:g} ms at the 99th percentile of all requests: {most}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "url": options.url,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "slo_seconds": slo,
        "runs": [run.as_dict() for run in runs],
    }
    path = options.out / "load_test"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    plot(runs, slo, path.with_suffix(".png"))
    print(f"{path}.json and {path}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
