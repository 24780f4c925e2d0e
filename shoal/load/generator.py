"""A process that sends requests: at given moments (open loop), or each connection its next as
soon as it has the answer to its last (closed loop).

In an open loop latency counts from the moment a request was meant to be sent, whether or not a
connection was free then: a server that stalls does not stop its callers' clocks ("coordinated
omission", as Gil Tene named it).
"""

from __future__ import annotations

import asyncio
import random
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.load.connection import FAILED, Connection
from shoal.load.images import class_of
from shoal.load.timer import Timer

MAX_CONNECTIONS = 4096
WATCH_EVERY = 0.5
PAUSE_AFTER_FAILURE = 0.01


@dataclass(frozen=True)
class Job:
    """What one process does."""

    url: str
    requests: Sequence[bytes]
    expected: Sequence[str | None]
    """The class that the answer to each of `requests` names; None: any."""
    duration: float
    timeout: float
    seed: int
    times: Sequence[float] | None
    """Open loop: when to send, in seconds from the start, increasing. None: closed loop."""
    concurrency: int = 0
    """Closed loop: how many connections. Open loop: how many are open before the first request is
    sent, and take turns; 0: opened as need be, and as few as will do."""


@dataclass
class Outcome:
    """What one process saw. `intended`, `latency` and `status` are by request, as they ended."""

    intended: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    different: int = 0
    """Answers that named another class than expected."""
    bytes_sent: int = 0
    bytes_received: int = 0
    """Of answers' bodies."""
    send_lag: list[float] = field(default_factory=list)
    """Open loop: how late the generator itself was to look at what was due."""
    cpu_share: float = 0.0
    """Of one core."""


class Generator:
    def __init__(self, job: Job, tell: Callable[[int, int], None]) -> None:
        """`tell(answered, failed)` is called twice a second."""
        self._job = job
        self._tell = tell
        self._outcome = Outcome()
        self._random = random.Random(job.seed)
        self._url = urllib.parse.urlsplit(job.url)
        self._next = 0
        self._due: deque[float] = deque()
        self._asked = 0
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._ending = False

    async def run(self) -> Outcome:
        """Returns when all that was sent has ended."""
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
        self._outcome.cpu_share = (time.process_time() - cpu) / elapsed
        watch.cancel()
        self._timer.close()
        for connection in self._connections:
            connection.close()
        return self._outcome

    def _send_due(self) -> None:
        """Open loop: send what is due, and come back when more is."""
        times = self._job.times
        assert times is not None
        now = time.monotonic()
        while self._next < len(times) and (when := self._start + times[self._next]) <= now:
            self._outcome.send_lag.append(now - when)
            self._next += 1
            self._put(when)
        if self._next < len(times):
            self._timer.set(self._start + times[self._next])

    def _put(self, intended: float) -> None:
        """A request that is to be sent as soon as there is a connection."""
        self._due.append(intended)
        while self._due and self._idle:
            connection = self._idle.popleft() if self._job.concurrency else self._idle.pop()
            if connection.usable:
                self._ask(connection)
        self._open_another()

    def _open_another(self) -> None:
        """If more is due than connections are on their way."""
        room = len(self._connections) + len(self._opening) < MAX_CONNECTIONS
        if len(self._due) > len(self._opening) and room:
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        url = self._url
        secure = url.scheme == "https"
        port = url.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                Connection, url.hostname or "", port, ssl=secure or None
            )
        except OSError:
            if self._due:
                await asyncio.sleep(PAUSE_AFTER_FAILURE)
                self._record(self._due.popleft(), FAILED)
            return
        self._connections.add(connection)
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        """`connection` has nothing to do."""
        if not connection.usable:
            self._connections.discard(connection)
            self._open_another()
        elif self._due:
            self._ask(connection)
        else:
            self._idle.append(connection)

    def _ask(self, connection: Connection) -> None:
        intended = self._due.popleft()
        number = self._random.randrange(len(self._job.requests))
        request, expected = self._job.requests[number], self._job.expected[number]
        self._asked += 1
        self._outcome.bytes_sent += len(request)

        def answered(status: int, body: bytes) -> None:
            self._asked -= 1
            self._outcome.bytes_received += len(body)
            if status == 200 and expected is not None and class_of(body) != expected:
                self._outcome.different += 1
            self._free(connection)
            self._record(intended, status)

        connection.ask(request, answered)

    def _record(self, intended: float, status: int) -> None:
        """A request has ended."""
        now = time.monotonic()
        self._outcome.intended.append(intended - self._start)
        self._outcome.latency.append(now - intended)
        self._outcome.status.append(status)
        self._failed += status != 200
        if self._job.times is None and not self._ending:
            self._put(now)
        self._end_if_done()

    def _end_if_done(self) -> None:
        sent = self._job.times is None or self._next == len(self._job.times)
        if self._ending and sent and not self._due and not self._asked:
            self._ended.set()

    async def _watch(self) -> None:
        """Tell how far we are, and give up on what takes too long."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            overdue = time.monotonic() - self._job.timeout
            for connection in [c for c in self._connections if c.busy and c.asked_at < overdue]:
                connection.give_up()
            self._tell(len(self._outcome.status) - self._failed, self._failed)
