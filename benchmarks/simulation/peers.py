"""Simulates the batching policies of other servers.

The policies have the control flow of these servers, but no code of these servers was copied. The
policies are better than the servers in two points. The queue is first in, first out. Requests that
have exceeded their deadline are dropped before they are computed, not afterwards. If a device has
several lanes, which run one batch each at the same time, there is a worker for each lane. All
workers share one queue. The first free worker takes the next batch, and only one worker collects
requests at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from benchmarks.simulation.devices import LARGEST, Clockwork
from benchmarks.simulation.outcome import Request

Policy = Callable[[Sequence[float], Clockwork, float], list[Request]]
"""Runs a policy. The arguments are the arrival times, the device, and the SLO (the timeout of every
request) in seconds. Returns the requests with their results."""


class _Queue:
    """Requests that have arrived and can still meet their deadline, the oldest first."""

    def __init__(self, arrivals: Sequence[float], slo: float) -> None:
        self.requests = [Request(arrived) for arrived in arrivals]
        self._slo = slo
        self._next = 0
        self._waiting: deque[Request] = deque()

    def arrive(self, now: float) -> None:
        """Adds requests that have arrived by `now`, and drops requests after their deadline."""
        requests = self.requests
        while self._next < len(requests) and requests[self._next].arrived <= now:
            self._waiting.append(requests[self._next])
            self._next += 1
        while self._waiting and self._waiting[0].arrived + self._slo <= now:
            self._waiting.popleft()

    def first(self, now: float) -> float | None:
        """Returns the earliest time, not before `now`, at which a request is in the queue.

        Returns None if the queue is empty and no further request arrives.
        """
        self.arrive(now)
        if self._waiting:
            return now
        return self.requests[self._next].arrived if self._next < len(self.requests) else None

    def nth_arrival(self, n: int) -> float:
        """Returns the arrival time of the n-th request. The first in the queue has n = 1."""
        place = self._next + n - len(self._waiting) - 1
        return self.requests[place].arrived if place < len(self.requests) else float("inf")

    def take(self, count: int) -> list[Request]:
        """Removes and returns the first `count` requests, or all requests if there are fewer."""
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest(self) -> float:
        """Returns the arrival time of the first request in the queue."""
        return self._waiting[0].arrived


def _when_free(largest: int, window: Callable[[Clockwork], float]) -> Policy:
    """Returns a policy in which a free worker takes the first request, then waits for others.

    Args:
        largest: Maximum batch size.
        window: Returns the seconds that the worker waits for other requests.
    """

    def policy(arrivals: Sequence[float], clockwork: Clockwork, slo: float) -> list[Request]:
        queue = _Queue(arrivals, slo)
        now = 0.0
        while (picked_up := queue.first(max(now, clockwork.free_at))) is not None:
            queue.arrive(picked_up)
            now = picked_up
            if len(queue) < largest and window(clockwork):
                now = max(now, min(picked_up + window(clockwork), queue.nth_arrival(largest)))
                queue.arrive(now)
            if batch := queue.take(largest):
                done = clockwork.compute(len(batch), now)
                for request in batch:
                    request.done = done
        return queue.requests

    return policy


def _window(clockwork: Clockwork) -> float:
    """Returns the window in seconds: T(1), the mean time of a batch of one item."""
    return clockwork.device.mean(1)


def early_freeze(arrivals: Sequence[float], clockwork: Clockwork, slo: float) -> list[Request]:
    """A policy that forms batches even while the device is busy.

    A batch is complete when it has the maximum size, or when its first request has waited for the
    length of the window.
    """
    requests = [Request(arrived) for arrived in arrivals]
    window = _window(clockwork)
    first = 0
    while first < len(requests):
        closes = requests[first].arrived + window
        last = first
        while last < len(requests) and requests[last].arrived <= closes and last - first < LARGEST:
            last += 1
        if last - first == LARGEST:
            closes = requests[last - 1].arrived
        starts = max(clockwork.free_at, closes)
        batch = [r for r in requests[first:last] if r.arrived + slo > starts]
        first = last
        if batch:
            done = clockwork.compute(len(batch), starts)
            for request in batch:
                request.done = done
    return requests


def linear_fit(arrivals: Sequence[float], clockwork: Clockwork, slo: float) -> list[Request]:
    """A policy that predicts the time of a batch of n items as a*n + b.

    a and b are fitted to the last 50 batches. If the first request would be late in a batch of the
    whole queue, the first request is dropped. The policy waits for more requests if the predicted
    mean latency is lower with waiting. In this simulation, the policy learns the time of a batch
    when the batch begins.
    """
    queue = _Queue(arrivals, slo)
    now = 0.0
    sizes: deque[int] = deque(maxlen=50)
    times: deque[float] = deque(maxlen=50)
    waits: deque[float] = deque([0.0], maxlen=50)
    slope = intercept = clockwork.device.mean(1) / 2
    refit_at = 0.0
    batches = 0
    while (start := queue.first(max(now, clockwork.free_at))) is not None:
        now = start
        queue.arrive(now)
        while len(queue) and now - queue.oldest() + slope * len(queue) + intercept >= slo:
            queue.take(1)[0].accepted = False
        if not len(queue):
            now = max(now, queue.nth_arrival(1))
            continue
        training = batches < 11
        cap = 1 + batches // 5 if training else LARGEST
        held = sum(waits) / len(waits)
        if not training:
            n = len(queue)
            spent = now - queue.oldest()
            if n < cap and n * (spent / n + intercept) <= 0.95 * held:
                now = min(now + 1e-3, queue.nth_arrival(n + 1))
                continue
        waits.append(now - queue.oldest())
        batch = queue.take(cap)
        done = clockwork.compute(len(batch), now)
        batches += 1
        sizes.append(len(batch))
        times.append(done - now)
        for request in batch:
            request.done = done
        if done >= refit_at:
            slope, intercept = _least_squares(sizes, times)
            refit_at = done + 0.1
    return queue.requests


def _least_squares(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Returns the slope and the intercept of the least-squares fit.

    If all sizes are equal, the fit with the smallest norm is returned, as in the simulated server.
    """
    n = len(sizes)
    mean_size, mean_time = sum(sizes) / n, sum(times) / n
    spread = sum((size - mean_size) ** 2 for size in sizes)
    if not spread:
        share = mean_time / (mean_size**2 + 1)
        return share * mean_size, share
    pairs = zip(sizes, times, strict=True)
    slope = sum((size - mean_size) * (time - mean_time) for size, time in pairs) / spread
    return max(slope, 0.0), max(mean_time - slope * mean_size, 0.0)


PEERS: dict[str, Policy] = {
    "no batching": _when_free(1, lambda _: 0.0),
    "fixed window": _when_free(LARGEST, _window),
    "early freeze": early_freeze,
    "greedy": _when_free(LARGEST, lambda _: 0.0),
    "linear fit": linear_fit,
}
