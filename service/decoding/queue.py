"""FairQueue: orders the images that wait for a decoder so that clients get equal decode time.

Promises
- Clients that have jobs waiting receive equal CPU time, whatever their jobs cost: the times of two
  of them differ by at most one job of each for each decoder.
- Before the first job of a new client, each other client receives at most one job, the time of the
  new job, and the error of its estimates, however many jobs it has waiting.
- A client that sends a cheap job now and then waits for about two expensive jobs of others, not for
  one of each client, if these are estimated right.
- Pauses earn no credit. Time that a client has used beyond its share remains a debt after its last
  job, until the clients that wait have received as much. Without waiting clients there is no debt.
- New clients, however many, do not starve a client that waits: the level at which they start rises
  with the time that others receive.
- Within a client, cheap jobs precede expensive ones. The oldest job is overtaken only until the
  others have received as much time as it is estimated to take, so none is starved. Most often its
  deadline comes first.
- A client without waiting jobs is accepted unless as many clients wait as jobs may. When the queue
  is full, the client with the most waiting jobs loses one to a client that has at least two fewer.
- Memory is bounded by `max_jobs` and the number of jobs that run.

The method is fair queueing by virtual finish times (Demers, Keshav and Shenker, 1989). A client's
level is the CPU time that it has received, its running jobs by their estimates. The client whose
level will be lowest when its next job is done is served. New clients start at the level of the
client that is served, plus an equal share of what was decoded since.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from service.decoding.ranking import Ranking
from service.errors import DecodeQueueFull

T = TypeVar("T", bound=Hashable)

LEAST = 1e-6
"""Minimum cost of a job, in seconds, so that jobs that cost nothing take turns, too."""


class _Client(Generic[T]):
    """A client with jobs that wait or run, or with a debt."""

    __slots__ = ("backlog", "jobs", "name", "overtaken", "received", "running")

    def __init__(self, name: Hashable, received: float) -> None:
        self.name = name
        self.received = received
        """CPU seconds it has received, on the scale of `FairQueue._level`."""
        self.backlog = 0.0
        """Estimated CPU seconds of its jobs, waiting and running."""
        self.jobs = Ranking[T]()
        """Waiting jobs, by their estimates."""
        self.overtaken = 0.0
        """Estimated CPU seconds of jobs that overtook the oldest one."""
        self.running = deque[float]()
        """Estimates of the jobs that were taken and not charged yet, oldest first."""

    @property
    def is_active(self) -> bool:
        """Whether it has jobs, waiting or running."""
        return bool(self.jobs or self.running)

    @property
    def level(self) -> float:
        return self.received + sum(self.running)

    def next(self) -> tuple[float, T]:
        """The estimate of the next job to take, and the job."""
        oldest = self.jobs.oldest()
        return oldest if oldest[0] <= self.overtaken else self.jobs.lowest()

    def run(self, job: T, seconds: float) -> None:
        """Make `job`, which waits, a running one."""
        self.overtaken = 0.0 if job == self.jobs.oldest()[1] else self.overtaken + seconds
        self.jobs.discard(job)
        self.running.append(seconds)


class FairQueue(Generic[T]):
    """Jobs of many clients. Jobs are identified by their hash, and each may wait once.

    Each job that was taken must be charged once, when it has ended.
    """

    def __init__(self, max_jobs: int) -> None:
        """`max_jobs`: maximum number of jobs that wait, at least 1."""
        self._max_jobs = max_jobs
        self._jobs: dict[T, _Client[T]] = {}  # those that wait
        self._clients: dict[Hashable, _Client[T]] = {}
        self._by_turn = Ranking[_Client[T]]()  # clients with waiting jobs, next one first
        self._by_count = Ranking[_Client[T]]()  # the same, by the number of these jobs
        self._in_debt = Ranking[_Client[T]]()  # clients without jobs, by what they have received
        self._backlogs: list[float] = []  # of all clients, ascending
        self._level = 0.0
        """CPU seconds that new clients start with."""

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return len(self._jobs)

    def __contains__(self, job: T) -> bool:
        """Whether `job` waits."""
        return job in self._jobs

    def put(self, job: T, client: Hashable, seconds: float) -> T | None:
        """Add a job of `client` that is estimated to take `seconds` of CPU time.

        Returns the job of another client that was removed to make room, if any.

        Raises:
            DecodeQueueFull: The queue is full, and no client has at least two waiting jobs more
                than this one.
            ValueError: The estimate is not finite.
        """
        seconds = _checked(seconds)
        displaced = self._make_room(client)
        known = self._known(client)
        self._in_debt.discard(known)
        if not known.jobs:
            known.received = max(known.received, self._level)
        self._jobs[job] = known
        known.jobs.set(job, seconds)
        self._change_backlog(known, seconds)
        self._rank(known)
        return displaced

    def discard(self, job: T) -> bool:
        """Remove a waiting job whose request has ended. Returns whether it was waiting."""
        client = self._jobs.pop(job, None)
        if client is None:
            return False
        self._change_backlog(client, -client.jobs.discard(job))
        self._rank(client)
        self._settle(client)
        return True

    def take(self) -> T | None:
        """Remove the next job to decode and return it; None: no job waits."""
        if not self._jobs:
            return None
        _, client = self._by_turn.lowest()
        seconds, job = client.next()
        del self._jobs[job]
        client.run(job, seconds)
        self._rank(client)
        self._advance(client.received)
        return job

    def charge(self, client: Hashable, seconds: float) -> None:
        """One job of `client` that was taken has ended, and took `seconds` of CPU time.

        The time replaces the estimate of the job that was taken first. When all jobs of the client
        have ended, what it has received is exact. Raises ValueError for a time that is not finite.
        """
        seconds = _checked(seconds)
        known = self._known(client)
        known.received += seconds
        if known.running:
            self._change_backlog(known, -known.running.popleft())
        self._rank(known)
        if self._by_turn:
            active = len(self._clients) - len(self._in_debt)
            self._advance(self._level + seconds / active)
        self._settle(known)

    def seconds_until_done(self, client: Hashable, seconds: float) -> float:
        """CPU seconds of decoding until a job put now would be done, by a single decoder.

        Clients share the decoder equally: when `client` has received its backlog and `seconds`,
        each other client has received as much, or its whole backlog if that is less. A client that
        has received more than its share waits until the others have received that, too. Jobs that
        run count as if they had just begun.
        """
        seconds = _checked(seconds)
        share = seconds
        if known := self._clients.get(client):
            share += known.backlog + max(0.0, known.received - self._level)
        smaller = bisect_left(self._backlogs, share)
        larger = len(self._backlogs) - smaller
        return sum(self._backlogs[:smaller]) + share * larger + seconds

    def _known(self, client: Hashable) -> _Client[T]:
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(client, self._level)
            self._backlogs.insert(0, 0.0)
        return known

    def _make_room(self, client: Hashable) -> T | None:
        """Make room for a job of `client`. Returns the job that was removed, if any. Raises
        DecodeQueueFull."""
        if len(self._jobs) < self._max_jobs:
            return None
        known = self._clients.get(client)
        most, largest = self._by_count.highest()
        if most < (len(known.jobs) if known else 0) + 2:
            raise DecodeQueueFull
        _, job = largest.jobs.highest()
        self.discard(job)
        return job

    def _rank(self, client: _Client[T]) -> None:
        if not client.jobs:
            self._by_count.discard(client)
            self._by_turn.discard(client)
            return
        self._by_count.set(client, len(client.jobs))
        self._by_turn.set(client, client.level + client.next()[0])

    def _change_backlog(self, client: _Client[T], seconds: float) -> None:
        del self._backlogs[bisect_left(self._backlogs, client.backlog)]
        # Without jobs it is zero, and not what rounding leaves.
        client.backlog = max(0.0, client.backlog + seconds) if client.is_active else 0.0
        insort(self._backlogs, client.backlog)

    def _advance(self, level: float) -> None:
        """Raise the level of new clients to `level`, but not above that of the next client to be
        served."""
        if self._by_turn:
            level = min(level, self._by_turn.lowest()[0])
        self._level = max(self._level, level)
        self._forget()

    def _settle(self, client: _Client[T]) -> None:
        """Keep the debt of a client whose last job has ended."""
        if not client.is_active:
            self._in_debt.set(client, client.received)
            self._forget()

    def _forget(self) -> None:
        """Drop debts that are worked off, and the smallest of too many."""
        while self._in_debt:
            received, client = self._in_debt.lowest()
            if received > self._level and len(self._in_debt) <= self._max_jobs:
                return
            self._in_debt.discard(client)
            del self._clients[client.name]
            del self._backlogs[0]


def _checked(seconds: float) -> float:
    """Raises ValueError."""
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is not a finite number of seconds")
    return max(LEAST, seconds)
