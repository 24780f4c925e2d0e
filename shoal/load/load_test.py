"""A load test: images that the server answers, and the ways to send them at it.

Before the load each image is sent once; under load it must get the same class again.
"""

from __future__ import annotations

import argparse
import http.client
import math
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from shoal.load import fleet, images
from shoal.load.generator import Job
from shoal.load.report import Run, summarise

ARRIVALS = {"poisson": fleet.poisson, "constant": fleet.constant}
FIRST_RATE, LEAST_RATE = 50.0, 1.0
CLOSE_ENOUGH = 1.05
"""`--find-max` stops when the highest good rate and the lowest bad one are within this ratio."""


class Trouble(Exception):
    """The load test cannot be run; the message says why."""


class LoadTest:
    """Requests that are ready to be sent, and the ways to send them."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Asks the server for each image once. Raises Trouble."""
        self._options = options
        url, key = urllib.parse.urlsplit(options.url), os.environ.get("SHOAL_API_KEY")
        pictures = images.read(options.images) if options.images else images.made_up(options.side)
        requests = [images.request(url, picture, options.raw, key) for picture in pictures]
        answers = [ask(url, request) for request in requests]
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
    with tqdm(total=seconds, desc=load, leave=False, bar_format=form, disable=None) as bar:

        def progress(answered: int, failed: int) -> None:
            bar.n = min(time.monotonic() - started, seconds)
            bar.set_postfix_str(f"{answered:,} answered, {failed:,} not")

        yield progress


def ask(url: urllib.parse.SplitResult, request: bytes) -> tuple[int, bytes]:
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
