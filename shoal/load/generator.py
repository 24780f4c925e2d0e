"""Sends requests, in one process, and records what became of them.

In an open loop, requests are sent at given moments. Latency counts from the moment when a request
was meant to be sent, whether or not a connection was free then: a server that stalls does not stop
the clocks of its clients (Gil Tene's "coordinated omission"). In a closed loop, each connection
sends its next request as soon as it has the answer to the last one.
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
"""Seconds between looks for requests that time out, and between reports of progress."""
PAUSE_AFTER_FAILURE = 0.01
"""Seconds between a refused connection and the failure of the request that needed it."""


@dataclass(frozen=True)
class Job:
    """The load that one process generates."""

    url: str
    requests: Sequence[bytes]
    """Complete HTTP requests. Each one sent is chosen at random."""
    expected: Sequence[str | None]
    """For each of `requests`, the class that its answer must name. None: any class."""
    duration: float
    """Seconds in which requests are sent."""
    timeout: float
    """Seconds to wait for an answer."""
    seed: int
    """Seed of the choice of requests."""
    times: Sequence[float] | None
    """Open loop: when to send, in seconds from the start, increasing. None: closed loop."""
    concurrency: int = 0
    """Closed loop: number of connections. Open loop: number of connections that are open before
    the first request and used in turns. 0: they are opened as needed, as few as possible."""


@dataclass
class Samples:
    """What one process measured. `intended`, `latency` and `status` have one entry per request, in
    the order in which the requests ended."""

    intended: list[float] = field(default_factory=list)
    """Seconds from the start to the moment when the request was meant to be sent."""
    latency: list[float] = field(default_factory=list)
    """Seconds from that moment to the end of the request."""
    status: list[int] = field(default_factory=list)
    """HTTP status, FAILED or TIMED_OUT."""
    different: int = 0
    """Answers that named another class than expected."""
    bytes_sent: int = 0
    bytes_received: int = 0
    """Bodies of answers only."""
    send_lag: list[float] = field(default_factory=list)
    """Open loop: seconds by which the generator itself was late, for each request."""
    cpu_share: float = 0.0
    """CPU time of the process, as a share of one core."""


class Generator:
    """Generates the load of one job."""

    def __init__(self, job: Job, progress: Callable[[int, int], None]) -> None:
        """Prepares a job; `run` executes it.

        Args:
            job: The load.
            progress: Called every `WATCH_INTERVAL` seconds with the requests answered and failed.
        """
        self._job = job
        self._progress = progress
        self._samples = Samples()
        self._random = random.Random(job.seed)
        self._url = urllib.parse.urlsplit(job.url)
        self._next = 0
        """Open loop: index of the next of `times`."""
        self._due: deque[float] = deque()
        """Intended moments of requests that wait for a connection."""
        self._in_flight = 0
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._ending = False

    async def run(self) -> Samples:
        """Sends the requests. Returns once all of them have ended."""
        job = self._job
        self._ended = asyncio.Event()
        self._timer = Timer(self._send_due)
        watch = asyncio.create_task(self._watch())
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
        watch.cancel()
        self._timer.close()
        for connection in self._connections:
            connection.close()
        return self._samples

    def _send_due(self) -> None:
        """Open loop: sends the requests that are due, and sets the timer for the next one."""
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
        """Opens a connection if more requests wait than connections are being opened."""
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
        """Uses a free connection for the next request, or keeps it idle."""
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
        """Records a request that has ended."""
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
