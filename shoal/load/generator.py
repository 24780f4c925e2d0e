"""Sends requests from one process, and records their results.

In an open loop, requests are sent at planned times. The latency of a request is measured from its
planned time, even if no connection was free at that time. If the server stalls, the latency of
requests that could not be sent includes the stall. Measuring from planned times avoids the error
that Gil Tene calls "coordinated omission". In a closed loop, each connection sends its next request
when the response to its previous request has arrived.
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.load.connection import FAILED, Connection, connect_to
from shoal.load.images import class_of
from shoal.load.timer import Timer

MAX_CONNECTIONS = 4096
WATCH_INTERVAL = 0.5
"""Number of seconds between two checks for timeouts, and between two progress reports."""
PAUSE_AFTER_FAILURE = 0.01
"""Number of seconds between a refused connection and recording a request as failed."""


@dataclass(frozen=True)
class Job:
    """Description of the load that one process generates."""

    url: str
    """URL of the server."""
    requests: Sequence[bytes]
    """Complete HTTP requests. The generator sends randomly chosen elements."""
    expected: Sequence[str | None]
    """Expected class for each element of `requests`. None: any class is accepted."""
    duration: float
    """Number of seconds in which requests are sent."""
    timeout: float
    """Maximum number of seconds to wait for a response."""
    seed: int
    """Seed of the choice of requests."""
    times: Sequence[float] | None
    """Open loop: planned times in seconds since the start, in ascending order. None: the job is a
    closed loop."""
    concurrency: int = 0
    """Closed loop: number of connections. Open loop: number of connections to open before the first
    request and to use in rotation. 0 in an open loop: connections are opened when they are
    needed."""


@dataclass
class Samples:
    """Measurements of one process.

    `intended`, `latency` and `status` have one entry per request, in the order in which the
    requests ended.
    """

    intended: list[float] = field(default_factory=list)
    """Planned time of the request, in seconds since the start."""
    latency: list[float] = field(default_factory=list)
    """Number of seconds from the planned time to the end of the request."""
    status: list[int] = field(default_factory=list)
    """HTTP status of the response, or FAILED or TIMED_OUT."""
    different: int = 0
    """Number of responses with a class that differs from the expected class."""
    bytes_sent: int = 0
    """Total size of all requests in bytes."""
    bytes_received: int = 0
    """Total size of the bodies of all responses in bytes."""
    send_lag: list[float] = field(default_factory=list)
    """Open loop: number of seconds by which the generator itself delayed each request."""
    cpu_share: float = 0.0
    """CPU time of the process as a share of one core."""


class Generator:
    """Generates the load of one job."""

    def __init__(self, job: Job, progress: Callable[[int, int], None]) -> None:
        """Creates a generator. `run` generates the load.

        Args:
            job: Load to generate.
            progress: Function that is called every `WATCH_INTERVAL` seconds with the number of
                requests that have succeeded so far and the number of requests that have failed so
                far.
        """
        self._job = job
        self._progress = progress
        self._samples = Samples()
        self._random = random.Random(job.seed)
        self._url = urllib.parse.urlsplit(job.url)
        self._next = 0
        """Open loop: index in `times` of the next request."""
        self._due: deque[float] = deque()
        """Planned times of the requests that wait for a connection."""
        self._in_flight = 0
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._ending = False

    async def run(self) -> Samples:
        """Sends the requests. Returns the measurements after all requests have ended."""
        job = self._job
        self._ended = asyncio.Event()
        self._timer = Timer(self._send_due)
        watch = asyncio.create_task(self._watch())
        try:
            if job.times is not None:
                await asyncio.gather(*(self._open() for _ in range(job.concurrency)))
            cpu = time.process_time()
            self._start = time.monotonic()
            if job.times is not None:
                self._send_due()
            else:
                for _ in range(job.concurrency):
                    self._put(self._start)
            await asyncio.sleep(job.duration)
            self._ending = True
            if job.times is None:
                self._due.clear()
            self._end_if_done()
            await self._ended.wait()
            elapsed = time.monotonic() - self._start
            self._samples.cpu_share = (time.process_time() - cpu) / elapsed
        finally:
            watch.cancel()
            self._timer.close()
            for connection in self._connections:
                connection.close()
        return self._samples

    def _send_due(self) -> None:
        """Open loop: sends the requests that are due, and sets the timer for the next request."""
        times = self._job.times
        assert times is not None
        now = time.monotonic()
        while self._next < len(times) and (when := self._start + times[self._next]) <= now:
            self._samples.send_lag.append(now - when)
            self._next += 1
            self._put(when)
        if self._next < len(times):
            self._timer.set(self._start + times[self._next])

    def _put(self, intended: float) -> None:
        """Enqueues a request, which is sent as soon as a connection is free."""
        self._due.append(intended)
        while self._due and self._idle:
            connection = self._idle.popleft() if self._job.concurrency else self._idle.pop()
            if connection.usable:
                self._send(connection)
        self._open_another()

    def _open_another(self) -> None:
        """Opens a connection if more requests are waiting than connections are being opened."""
        room = len(self._connections) + len(self._opening) < MAX_CONNECTIONS
        if len(self._due) > len(self._opening) and room:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            connection = await connect_to(self._url)
        except OSError:
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
            if self._due:
                self._record(self._due.popleft(), FAILED)
            return
        self._connections.add(connection)
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        """Uses a free connection for the next request, or marks the connection as idle."""
        if not connection.usable:
            self._connections.discard(connection)
            self._open_another()
        elif self._due:
            self._send(connection)
        else:
            self._idle.append(connection)

    def _send(self, connection: Connection) -> None:
        intended = self._due.popleft()
        number = self._random.randrange(len(self._job.requests))
        request, expected = self._job.requests[number], self._job.expected[number]
        self._in_flight += 1
        self._samples.bytes_sent += len(request)

        def on_answer(status: int, body: bytes) -> None:
            self._in_flight -= 1
            self._samples.bytes_received += len(body)
            if status == 200 and expected is not None and class_of(body) != expected:
                self._samples.different += 1
            self._release(connection)
            self._record(intended, status)

        connection.send(request, on_answer)

    def _record(self, intended: float, status: int) -> None:
        """Records the result of a request that has ended."""
        now = time.monotonic()
        self._samples.intended.append(intended - self._start)
        self._samples.latency.append(now - intended)
        self._samples.status.append(status)
        self._failed += status != 200
        if self._job.times is None and not self._ending:
            self._put(now)
        self._end_if_done()

    def _end_if_done(self) -> None:
        all_sent = self._job.times is None or self._next == len(self._job.times)
        if self._ending and all_sent and not self._due and not self._in_flight:
            self._ended.set()

    async def _watch(self) -> None:
        """Reports progress, and ends requests that exceed the timeout."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            overdue = time.monotonic() - self._job.timeout
            for connection in [c for c in self._connections if c.busy and c.sent_at < overdue]:
                connection.time_out()
            self._progress(len(self._samples.status) - self._failed, self._failed)
