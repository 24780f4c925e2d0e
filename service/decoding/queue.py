"""A fair queue: orders the images that wait for a decoder so that clients get equal decode time.

A job is an image to decode. The cost of a job is its CPU time, which is estimated before the image
is decoded.

Guarantees
- Clients with waiting jobs receive equal CPU time, independent of the costs of their jobs. With k
  decoders, the CPU times of two clients differ by at most the cost of k jobs of one client plus the
  cost of k jobs of the other.
- While the first job of a new client waits, every other client receives limited CPU time. The limit
  is the cost of one job of the other client, plus the cost of the new job, plus the errors of the
  other client's estimates. The limit does not depend on the number of waiting jobs.
- If the estimates are correct, a client that sends a cheap job from time to time waits for about
  two expensive jobs of other clients. The wait does not grow with the number of clients.
- A client gets no credit for pauses. If a client has received more than its share, the excess is a
  debt. The debt remains after the client's last job, until the waiting clients have received the
  same time. Without waiting clients, there is no debt.
- New clients cannot starve a waiting client, however many there are: new clients start at a level
  that rises with the time that other clients receive.
- Cheap jobs of a client precede its expensive jobs. Other jobs of the client overtake its oldest
  job only until their total cost reaches the estimated cost of the oldest job. So no job starves.
- A job of a client without waiting jobs is accepted unless `max_jobs` clients are waiting. When the
  queue is full, a new job replaces a job of the client with the most waiting jobs. The replacement
  requires that the client of the new job has at least two fewer waiting jobs.
- Memory is limited by `max_jobs` and the number of running jobs.

The method is fair queueing by virtual finish times (Demers, Keshav and Shenker, 1989). The level of
a client is the CPU time that it has received, plus the estimates of its running jobs. `take`
selects the client whose level would be lowest after its next job. A new client starts at the level
of the client whose job was taken last. When a job ends, this starting level rises by the job's CPU
time divided by the number of active clients.
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
"""Minimum cost of a job, in seconds. Without this minimum, clients with jobs of cost 0 would not
take turns."""


class _Client(Generic[T]):
    """A client with jobs that wait or run, or with a debt."""

    __slots__ = ("backlog", "jobs", "name", "overtaken", "received", "running")

    def __init__(self, name: Hashable, received: float) -> None:
        self.name = name
        self.received = received
        """CPU seconds that the client has received, on the scale of `FairQueue._level`."""
        self.backlog = 0.0
        """Estimated CPU seconds of the client's waiting and running jobs."""
        self.jobs = Ranking[T]()
        """The client's waiting jobs, ordered by their estimates."""
        self.overtaken = 0.0
        """Estimated CPU seconds of the jobs that have overtaken the client's oldest job."""
        self.running = deque[float]()
        """Estimates of the client's jobs that were taken and are not charged yet, oldest first."""

    @property
    def is_active(self) -> bool:
        """Whether the client has waiting or running jobs."""
        return bool(self.jobs or self.running)

    @property
    def level(self) -> float:
        """CPU seconds that the client has received, with the estimates of its running jobs."""
        return self.received + sum(self.running)

    def next(self) -> tuple[float, T]:
        """Return the estimate of the client's next job, and the job."""
        oldest = self.jobs.oldest()
        return oldest if oldest[0] <= self.overtaken else self.jobs.lowest()

    def run(self, job: T, seconds: float) -> None:
        """Make a waiting job a running job."""
        self.overtaken = 0.0 if job == self.jobs.oldest()[1] else self.overtaken + seconds
        self.jobs.discard(job)
        self.running.append(seconds)


class FairQueue(Generic[T]):
    """The waiting jobs of all clients.

    Jobs must be hashable, and each job can wait only once. Callers must call `charge` once for each
    job that was taken, when it has ended.
    """

    def __init__(self, max_jobs: int) -> None:
        """
        Args:
            max_jobs: Maximum number of waiting jobs, at least 1.
        """
        self._max_jobs = max_jobs
        self._jobs: dict[T, _Client[T]] = {}  # clients of the waiting jobs
        self._clients: dict[Hashable, _Client[T]] = {}
        self._by_turn = Ranking[_Client[T]]()  # clients with waiting jobs, the next client first
        self._by_count = Ranking[_Client[T]]()  # the same clients, by number of waiting jobs
        self._in_debt = Ranking[_Client[T]]()  # clients without jobs, by received time
        self._backlogs: list[float] = []  # backlogs of all clients, in ascending order
        self._level = 0.0
        """Level at which new clients start, in CPU seconds."""

    def __len__(self) -> int:
        """Number of waiting jobs."""
        return len(self._jobs)

    def __contains__(self, job: T) -> bool:
        """Whether `job` is waiting."""
        return job in self._jobs

    def put(self, job: T, client: Hashable, seconds: float) -> T | None:
        """Add a job of `client` that is estimated to take `seconds` of CPU time.

        Returns the job of another client that was removed for this job. None: no job was removed.

        Raises:
            DecodeQueueFull: The queue is full, and no client has at least two waiting jobs more
                than `client`.
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
        """Remove a job when its request has ended. Returns whether the job was waiting."""
        client = self._jobs.pop(job, None)
        if client is None:
            return False
        self._change_backlog(client, -client.jobs.discard(job))
        self._rank(client)
        self._settle(client)
        return True

    def take(self) -> T | None:
        """Remove the next job from the queue and return it. Returns None if no job is waiting."""
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
        """Record that a taken job of `client` has ended and took `seconds` of CPU time.

        The time replaces the estimate of the client's job that was taken first. When all jobs of
        the client have ended, its received time is exact. Raises ValueError if `seconds` is not
        finite.
        """
        seconds = _checked(seconds)
        known = self._known(client)
        if known.running:
            self._change_backlog(known, -known.running.popleft())
        self.add(client, seconds)

    def add(self, client: Hashable, seconds: float) -> None:
        """Record that `client` has taken `seconds` of CPU time in addition to its jobs.

        Raises ValueError if `seconds` is not finite.
        """
        seconds = _checked(seconds)
        known = self._known(client)
        self._in_debt.discard(known)
        known.received += seconds
        self._rank(known)
        if self._by_turn:
            active = len(self._clients) - len(self._in_debt)
            self._advance(self._level + seconds / active)
        self._settle(known)

    def seconds_until_done(self, client: Hashable, seconds: float) -> float:
        """Return the seconds until a new job would be done if there were a single decoder.

        The backlog of a client is the CPU time of its waiting and running jobs. Clients share the
        decoder equally. While `client` receives its backlog and the new job, every other client
        receives the same time or its own backlog, whichever is less. If `client` has received more
        than its share, the other clients first receive the same excess. Running jobs count as if
        they had just started.

        Args:
            client: Client of the new job.
            seconds: Estimated CPU seconds of the new job.

        Raises:
            ValueError: `seconds` is not finite.
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
        """Make room for a job of `client`. Raises DecodeQueueFull.

        Returns the job that was removed. None: there was enough room.
        """
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
        # Without jobs, the backlog is exactly zero, despite rounding errors.
        client.backlog = max(0.0, client.backlog + seconds) if client.is_active else 0.0
        insort(self._backlogs, client.backlog)

    def _advance(self, level: float) -> None:
        """Raise the level of new clients to `level`, if `level` is higher.

        The result is not above the level that the next client will have after its next job.
        """
        if self._by_turn:
            level = min(level, self._by_turn.lowest()[0])
        self._level = max(self._level, level)
        self._forget()

    def _settle(self, client: _Client[T]) -> None:
        """Record the debt of a client without waiting or running jobs."""
        if not client.is_active:
            self._in_debt.set(client, client.received)
            self._forget()

    def _forget(self) -> None:
        """Drop the debts that are paid off. If there are too many debts, drop the smallest."""
        while self._in_debt:
            received, client = self._in_debt.lowest()
            if received > self._level and len(self._in_debt) <= self._max_jobs:
                return
            self._in_debt.discard(client)
            del self._clients[client.name]
            del self._backlogs[0]


def _checked(seconds: float) -> float:
    """Return `seconds`, but at least `LEAST`. Raises ValueError if it is not finite."""
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is not a finite number of seconds")
    return max(LEAST, seconds)
