"""Measures one endpoint of a running server under load."""

from __future__ import annotations

import contextlib
import functools
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from benchmarks.servers import START_TIMEOUT, Server
from shoal.load import images
from shoal.load.arrivals import poisson
from shoal.load.generator import Generator, Job
from shoal.load.images import Picture
from shoal.load.load_test import LoadTestFailed, ask
from shoal.load.report import Run, summarize

SMALL = images.generate(32)
VGA = images.generate(640, 8, 480)
LARGE = images.generate(4000, 2, 3000)
ANSWER_TIMEOUT = 20.0
"""Maximum number of seconds from a request to the response."""


@dataclass(frozen=True)
class Measurement:
    """Results of a measurement under load."""

    run: Run
    """Throughput, latencies and statuses."""
    cpu: float
    """CPU seconds of the server per request."""


class Endpoint:
    """A path of a running server that accepts images, as the body or in a form."""

    def __init__(self, server: Server, raw: bool, path: str = "/predict") -> None:
        """Describes an endpoint.

        Args:
            server: The server, which may not be ready yet.
            raw: Whether an image is sent as the body (True) or in a form (False).
            path: Path of the URL.
        """
        self.server = server
        self.raw = raw
        self.url = server.address + path

    def wait(self) -> None:
        """Waits until the endpoint responds to an image with 200.

        Raises:
            RuntimeError: The endpoint does not respond with 200 within `START_TIMEOUT` seconds.
        """
        deadline = time.monotonic() + START_TIMEOUT
        status, body = 0, b""
        while self.server.wait_for_port(deadline - time.monotonic()):
            with contextlib.suppress(LoadTestFailed):
                ((status, body),) = ask(self._url, self.requests(SMALL[:1]))
            if status == 200:
                return
            time.sleep(0.01)
        raise RuntimeError(f"{self.url} did not respond with 200, but: {status} {body[:300]!r}")

    @functools.cached_property
    def classes(self) -> list[str | None]:
        """Class that the server returns for each small image. The first access sends the images."""
        return [images.class_of(body) for _, body in ask(self._url, self.requests(SMALL))]

    def requests(self, pictures: Sequence[Picture]) -> list[bytes]:
        """Returns requests that upload the images, one request for each image."""
        return [images.request(self._url, picture, self.raw) for picture in pictures]

    def closed_loop(
        self, pictures: Sequence[Picture], connections: int, seconds: float, warm_up: float = 0.0
    ) -> Measurement:
        """Measures the endpoint with one request in flight on each connection.

        Args:
            pictures: Images that are uploaded in turn.
            connections: Number of connections.
            seconds: Length of the measurement in seconds.
            warm_up: Additional seconds of load before the measurement.
        """
        load = f"{connections} connections"
        return self._measure(load, pictures, seconds, warm_up, None, connections)

    def open_loop(
        self, pictures: Sequence[Picture], rate: float, seconds: float, warm_up: float = 0.0
    ) -> Measurement:
        """Measures the endpoint with requests at random times.

        Args:
            pictures: Images that are uploaded in turn.
            rate: Mean number of requests per second.
            seconds: Length of the measurement in seconds.
            warm_up: Additional seconds of load before the measurement.
        """
        return self._measure(f"{rate:.0f}/s", pictures, seconds, warm_up, rate, 0)

    @property
    def _url(self) -> urllib.parse.SplitResult:
        return urllib.parse.urlsplit(self.url)

    def _measure(
        self,
        load: str,
        pictures: Sequence[Picture],
        seconds: float,
        warm_up: float,
        rate: float | None,
        connections: int,
    ) -> Measurement:
        end = warm_up + seconds
        job = Job(
            url=self.url,
            requests=self.requests(pictures),
            expected=self.classes if pictures is SMALL else [None] * len(pictures),
            duration=end,
            timeout=ANSWER_TIMEOUT,
            seed=1,
            times=None if rate is None else poisson(rate, end, 1),
            concurrency=connections,
        )
        before = self.server.cpu_seconds()
        samples = uvloop.run(Generator(job, lambda answered, failed: None).run())
        cpu = (self.server.cpu_seconds() - before) / max(samples.status.count(200), 1)
        return Measurement(summarize(load, rate, [samples], warm_up, end), cpu)


def require_success(run: Run) -> None:
    """Raises RuntimeError unless every response has the status 200 and the expected class."""
    if set(run.statuses) != {"200"} or run.different:
        raise RuntimeError(
            f"Requests failed under load. Responses by status: {run.statuses}. Responses with a "
            f"wrong class: {run.different}"
        )
