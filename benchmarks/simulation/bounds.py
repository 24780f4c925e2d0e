"""What no policy can beat, on exactly these arrivals, with a device that makes no noise."""

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
    heard: float = 0.0,
) -> list[Request]:
    """min(offered, capacity) at every moment, instead of on average: requests flow through the
    device at its best rate, and whoever would have to wait longer than the SLO is refused.

    Between two moments no device answers more than its capacity times the seconds between them,
    and all who arrive within must be answered at most one SLO later. Taking everybody for whom
    there is room answers the most under that rule.

    Until `heard` nothing is known of the change at `half_time`: accepted is who could be answered
    if there were none, and of those who are then too many the flow loses as few as it can.
    """
    before = device.capacity(slo)
    after = device.capacity(slo / device.slower) / device.slower

    def done_by(t: float) -> float:
        return before * min(t, half_time) + after * max(t - half_time, 0.0)

    def when(work: float) -> float:
        first = before * half_time
        return work / before if work <= first else half_time + (work - first) / after

    requests = [Request(arrived) for arrived in arrivals]
    work = believed = 0.0
    for request in requests:
        free = max(work, done_by(request.arrived))
        fits = free + 1 <= done_by(request.arrived + slo) + 1e-9
        if request.arrived < heard:
            believed_free = max(believed, before * request.arrived)
            request.accepted = believed_free + 1 <= before * (request.arrived + slo) + 1e-9
            believed = believed_free + request.accepted
        else:
            request.accepted = fits
        if request.accepted and fits:
            work = free + 1
            request.done = when(work)
    return requests


def clairvoyant(arrivals: Sequence[float], device: Device, slo: float) -> float:
    """The largest share of the arrivals that can be answered within the SLO by one who knows
    them all in advance and may refuse whom it likes.

    With one SLO for all, exchanging two requests shows that some best schedule computes them in
    order of arrival and its batches are unbroken runs of arrivals. So it is enough to know, for
    the first j arrivals and every number g of them answered, the earliest time at which the
    device can be free again:

        free[j][g] = min(free[j-1][g], over n: max(free[j-n][g-n], arrival j) + T(n))

    where a batch of n counts only if it ends within the SLO of its first member's arrival. Of
    the states that leave the device idle when somebody arrives, only the one with most answers
    matters.
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
                break  # nor would a larger one end in time
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
