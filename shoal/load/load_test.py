"""Runs a load test: sends images to a server at given rates or concurrencies.

Before the load, each image is sent once. Under load, an image must get the same class again. If an
image gets another class, the server has probably mixed up the responses to two requests.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from shoal.load import images, processes
from shoal.load.arrivals import constant, poisson
from shoal.load.connection import FAILED, TIMED_OUT, connect_to
from shoal.load.generator import Job
from shoal.load.report import Run, summarize

ARRIVALS = {"poisson": poisson, "constant": constant}
FIRST_RATE, MIN_RATE = 50.0, 1.0
"""First rate that `--find-max` tries, and minimum rate, in requests per second. The search ends if
the server misses the SLO (service level objective) at all rates above the minimum."""
PRECISION = 1.05
"""`--find-max` stops when the lowest rate that misses the SLO is at most this multiple of the
highest rate that meets the SLO."""
ANSWER_TIMEOUT = 30.0
"""Timeout in seconds for the response to each request that is sent before the load."""


class LoadTestFailed(Exception):
    """The load test cannot be run. The message states the reason."""


class LoadTest:
    """Tests a server under different loads that consist of the same requests."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Sends each image to the server once, and leaves out the images that the server rejects.

        Args:
            options: Arguments of `shoal bench`.

        Raises:
            LoadTestFailed: The server does not respond, or rejects every image.
        """
        self._options = options
        url, key = urllib.parse.urlsplit(options.url), os.environ.get("SHOAL_API_KEY")
        pictures = images.read(options.images) if options.images else _generate(options.side)
        requests = [images.request(url, picture, options.raw, key) for picture in pictures]
        answers = ask(url, requests)
        accepted = [number for number, (status, _) in enumerate(answers) if status == 200]
        if not accepted:
            status, body = answers[0]
            raise LoadTestFailed(
                f"{options.url} responds with {status} to {pictures[0].name}: {body[:300]!r}"
            )
        if rejected := len(pictures) - len(accepted):
            print(f"The server rejects {rejected} of {len(pictures)} images, which are left out.")
        self._requests = [requests[number] for number in accepted]
        self._expected = [images.class_of(answers[number][1]) for number in accepted]
        labels = [pictures[number].label for number in accepted]
        labeled = [i for i, label in enumerate(labels) if label is not None]
        if labeled:
            correct = sum(labels[i] == self._expected[i] for i in labeled)
            print(f"{correct} of {len(labeled)} labeled images are classified correctly.")

    def open_loop(self, rate: float) -> Run:
        """Sends `rate` requests per second, even if the server is slower."""
        options, count = self._options, self._options.processes
        arrivals = ARRIVALS[options.arrivals]
        seconds = options.warm_up + options.duration
        times = [arrivals(rate / count, seconds, options.seed + k) for k in range(count)]
        jobs = [self._job(times=moments, seed=k) for k, moments in enumerate(times)]
        return self._run(f"{rate:,.0f}/s {options.arrivals}", rate, jobs)

    def closed_loop(self, concurrency: int) -> Run:
        """Keeps `concurrency` requests in flight at all times."""
        count = min(self._options.processes, concurrency)
        shares = [concurrency // count + (k < concurrency % count) for k in range(count)]
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
        with _progress_bar(load, end) as progress:
            samples = processes.run(jobs, progress)
        return summarize(load, rate, samples, options.warm_up, end)


def _generate(side: int) -> list[images.Picture]:
    try:
        return images.generate(side)
    except ModuleNotFoundError as error:
        raise LoadTestFailed(
            f"Generating images needs the package {error.name}. Choose a folder of images with"
            " --images, or install Shoal with the extra 'server'"
        ) from error


def find_max(measure: Callable[[float], Run], slo: float) -> Iterator[Run]:
    """Searches for the highest rate that meets the SLO (service level objective).

    Args:
        measure: Function that runs an open loop at a rate, in requests per second.
        slo: Maximum 99th percentile of the latency of all requests, in seconds.

    Yields:
        The results at each tried rate. The rates approach the highest rate that meets the SLO.
    """
    low, high, rate = 0.0, math.inf, FIRST_RATE
    while high > max(PRECISION * low, MIN_RATE):
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
def _progress_bar(load: str, seconds: float) -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar if standard error is a terminal."""
    started = time.monotonic()
    form = "{desc}: {bar}{n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=seconds, desc=load, leave=False, bar_format=form, disable=None) as bar:

        def progress(answered: int, failed: int) -> None:
            bar.n = min(time.monotonic() - started, seconds)
            bar.set_postfix_str(f"{answered:,} answered, {failed:,} failed")

        yield progress


def ask(url: urllib.parse.SplitResult, requests: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Sends the requests one after the other.

    Returns:
        Status and body of each response.

    Raises:
        LoadTestFailed: The server does not respond.
    """
    return asyncio.run(_ask(url, requests))


async def _ask(url: urllib.parse.SplitResult, requests: Sequence[bytes]) -> list[tuple[int, bytes]]:
    answers = []
    try:
        for request in requests:
            connection = await connect_to(url)
            answers.append(await connection.request(request, ANSWER_TIMEOUT))
            connection.close()
            if answers[-1][0] in (FAILED, TIMED_OUT):
                raise ConnectionError("the connection was lost or timed out")
    except OSError as error:
        raise LoadTestFailed(
            f"{url.geturl()} does not respond: {error}. Check that the server is running"
        ) from error
    return answers
