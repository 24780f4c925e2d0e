"""Computes upper bounds on the number of requests that any batching policy can complete in time.

The bounds hold for given arrival times and a device with deterministic batch times. Each request
has the same timeout in seconds. This timeout is the SLO, the service level objective.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulation.devices import LARGEST, Device
from benchmarks.simulation.outcome import Request


def fluid(
    arrivals: Sequence[float],
    device: Device,
    slo: float,
    half_time: float,
    *,
    known_from: float = 0.0,
) -> list[Request]:
    """Simulates a device that processes requests one by one at its maximum rate, without batches.

    A request is rejected if it cannot be completed within the SLO. All other requests are accepted.
    No policy can complete more requests, for two reasons. In any interval, the number of processed
    requests is at most the capacity of the device (requests per second) times the length of the
    interval. Each request must be completed within one SLO after its arrival.

    Args:
        arrivals: Arrival times of the requests in seconds, in ascending order.
        device: The device.
        slo: Timeout of every request in seconds.
        half_time: Time in seconds at which the device becomes slower.
        known_from: Time in seconds from which the change of the device is known. Before that time,
            a request is accepted if it could be completed within the SLO on a device that never
            becomes slower. As many of the accepted requests as possible are completed.

    Returns:
        The requests with their results.
    """
    before = device.capacity(slo)
    after = device.capacity(slo / device.slower) / device.slower

    def requests_done(t: float) -> float:
        """Returns the number of requests that the device can finish until the time `t`."""
        return before * min(t, half_time) + after * max(t - half_time, 0.0)

    def time_of(work: float) -> float:
        """Returns the earliest time by which the device can finish `work` requests."""
        first = before * half_time
        return work / before if work <= first else half_time + (work - first) / after

    requests = [Request(arrived) for arrived in arrivals]
    work = believed = 0.0
    for request in requests:
        free = max(work, requests_done(request.arrived))
        fits = free + 1 <= requests_done(request.arrived + slo) + 1e-9
        if request.arrived < known_from:
            believed_free = max(believed, before * request.arrived)
            request.accepted = believed_free + 1 <= before * (request.arrived + slo) + 1e-9
            believed = believed_free + request.accepted
        else:
            request.accepted = fits
        if request.accepted and fits:
            work = free + 1
            request.done = time_of(work)
    return requests


def clairvoyant(arrivals: Sequence[float], device: Device, slo: float) -> float:
    """Returns the maximum share of requests that can be completed within the SLO.

    The policy knows all arrivals in advance and may reject any request. The device must have one
    lane. All requests have the same SLO, so a change of their order never helps. Therefore, one of
    the optimal schedules has only batches of consecutive arrivals. To find this schedule, the
    function computes free[j][g] for all j and g. free[j][g] is the earliest time at which the
    device can be free again if g of the first j requests are completed:

        free[j][g] = min(free[j-1][g], over n: max(free[j-n][g-n], arrival j) + T(n))

    T(n) is the time that a batch of n requests takes. A batch is considered only if it ends within
    one SLO after the arrival of its first request. If the device is idle in several states when a
    request arrives, only the state with the most completed requests is kept.

    Args:
        arrivals: Arrival times of the requests in seconds, in ascending order.
        device: The device.
        slo: Timeout of every request in seconds.
    """
    sizes = [n for n in range(1, LARGEST + 1) if device.mean(n) <= slo]
    rows: deque[tuple[int, NDArray[np.float64]]] = deque([(0, np.zeros(1))], maxlen=max(sizes))
    for j, arrived in enumerate(arrivals):
        base, last = rows[-1]
        row = np.concatenate([last, np.full(max(sizes), np.inf)])
        for n, (start, before) in zip(sizes, reversed(rows), strict=False):
            ends = np.maximum(before, arrived) + device.mean(n)
            ends = ends[: ends.searchsorted(arrivals[j - n + 1] + slo, side="right")]
            if not len(ends):
                break  # a larger batch would be late as well
            place = start + n - base
            if place < 0:
                ends, place = ends[-place:], 0
            part = row[place : place + len(ends)]
            np.minimum(part, ends[: len(part)], out=part)
        idle = np.flatnonzero(row <= arrived)
        first = int(idle[-1]) if len(idle) else 0
        last_finite = int(np.flatnonzero(np.isfinite(row))[-1])
        rows.append((base + first, row[first : last_finite + 1]))
    base, row = rows[-1]
    return (base + len(row) - 1) / len(arrivals)
