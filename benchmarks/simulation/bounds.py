"""Bounds: what no policy can exceed for given arrivals on a device without noise."""

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
    """Requests flow through the device at its best rate, one by one and without batches.

    A request that would take longer than the SLO is rejected. In any interval, no device answers
    more than its capacity times the interval's length, and a request must be answered within one
    SLO of its arrival. Accepting every request for which there is room gives the maximum number of
    answers under these conditions. So this is min(offered, capacity) at every moment, and not on
    average.

    Args:
        arrivals: In increasing seconds.
        device: The device.
        slo: Seconds in which a request must be answered.
        half_time: When the device becomes slower.
        known_from: Until then the change is unknown: a request is accepted if it could be answered
            without the change. Of the accepted requests as many as possible are answered.
    """
    before = device.capacity(slo)
    after = device.capacity(slo / device.slower) / device.slower

    def requests_done(t: float) -> float:
        """Requests that the device can compute by `t`."""
        return before * min(t, half_time) + after * max(t - half_time, 0.0)

    def time_of(work: float) -> float:
        """When `work` requests are computed."""
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
    """The maximum share of the arrivals that can be answered within the SLO if all arrivals are
    known in advance and any request may be rejected.

    All requests have the same SLO. Exchanging two requests therefore shows that an optimal schedule
    computes them in order of arrival, and that each of its batches is a run of consecutive
    arrivals. So for the first j arrivals and every number g of answers, it is enough to know the
    earliest time at which the device can be free again:

        free[j][g] = min(free[j-1][g], over n: max(free[j-n][g-n], arrival j) + T(n))

    where a batch of n counts only if it ends within one SLO of the arrival of its first request. Of
    all states in which the device is idle at an arrival, only that with the most answers matters.
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
