"""Peers: the policies of other servers, rewritten from their control flow.

They are not the other servers' code, and are improved where that helps them: the queue is first in,
first out, and a request without time is dropped before it is computed and not afterwards. A device
with several lanes has a worker for each lane. All workers share one queue, a batch goes to the
first free worker, and one worker collects requests at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from benchmarks.simulation.devices import LARGEST, Clockwork
from benchmarks.simulation.outcome import Request

Policy = Callable[[Sequence[float], Clockwork, float], list[Request]]


class _Queue:
    """Requests that have arrived and still have time, oldest first."""

    def __init__(self, arrivals: Sequence[float], slo: float) -> None:
        self.requests = [Request(arrived) for arrived in arrivals]
        self._slo = slo
        self._next = 0
        self._waiting: deque[Request] = deque()

    def arrive(self, now: float) -> None:
        """Add requests that have arrived by `now`, and drop those without time."""
        requests = self.requests
        while self._next < len(requests) and requests[self._next].arrived <= now:
            self._waiting.append(requests[self._next])
            self._next += 1
        while self._waiting and self._waiting[0].arrived + self._slo <= now:
            self._waiting.popleft()

    def first(self, now: float) -> float | None:
        """`now` if a request waits, otherwise the next arrival; None after the last request."""
        self.arrive(now)
        if self._waiting:
            return now
        return self.requests[self._next].arrived if self._next < len(self.requests) else None

    def nth_arrival(self, n: int) -> float:
        """When the n-th request arrives, counted from the first one in the queue."""
        place = self._next + n - len(self._waiting) - 1
        return self.requests[place].arrived if place < len(self.requests) else float("inf")

    def take(self, count: int) -> list[Request]:
        """Remove and return the first `count` requests, or all if there are fewer."""
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest(self) -> float:
        """Arrival of the first request."""
        return self._waiting[0].arrived


def _when_free(largest: int, window: Callable[[Clockwork], float]) -> Policy:
    """A free worker takes the first request, waits `window` seconds for others, and computes."""

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
    """T(1): a good choice for all loads together, since it is not tuned for each load."""
    return clockwork.device.mean(1)


def early_freeze(arrivals: Sequence[float], clockwork: Clockwork, slo: float) -> list[Request]:
    """Batches are formed by size or window, whether or not the device is free."""
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
    """Fits a*n + b to the times of the last 50 batches.

    Drops the first requests if the whole queue is predicted to be late, and waits for more requests
    if that is predicted to pay off. Learns the time of a batch when it begins.
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
    """Slope and intercept. If all sizes are equal, those of least norm, as in the original."""
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
