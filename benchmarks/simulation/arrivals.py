"""Generates the times at which requests arrive, in seconds, in ascending order.

In all functions, `rate` is the mean number of requests per second, `count` is the approximate
number of requests, and `seed` is the seed of the random numbers. Equal arguments give equal times.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

BURST = Path(__file__).parent / "burst.json"


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Returns arrivals of independent requests at a constant rate."""
    return _thinned(rate, count, seed, lambda _: 1.0, 1.0)


def on_off(rate: float, count: int, seed: int) -> list[float]:
    """Returns arrivals that start and stop ten times.

    The run has ten periods of the same length. In the first quarter of a period, requests arrive at
    four times the rate. In the other three quarters, no requests arrive.
    """
    period = count / rate / 10
    return _thinned(rate, count, seed, lambda t: 4.0 if t % period < period / 4 else 0.0, 4.0)


def ramp(rate: float, count: int, seed: int) -> list[float]:
    """Returns arrivals at a rate that rises from 0.1 to 1.9 times `rate` and then falls again."""
    day = count / rate
    return _thinned(rate, count, seed, lambda t: 1 - 0.9 * math.cos(2 * math.pi * t / day), 1.9)


def bursts(rate: float, count: int, seed: int) -> list[float]:
    """Returns arrivals in bursts of 128 requests, and single arrivals at a tenth of the rate.

    The requests of a burst are sent at the same time. Their arrival times were recorded by `python
    -m benchmarks.record_burst`.
    """
    recorded: list[float] = json.loads(BURST.read_text())
    length = count / rate
    quiet = _thinned(rate / 10, count // 10, seed, lambda _: 1.0, 1.0)
    together = max(1, round(0.9 * count / len(recorded)))
    starts = [length * (k + 0.5) / together for k in range(together)]
    return sorted(quiet + [start + offset for start in starts for offset in recorded])


def _thinned(
    rate: float, count: int, seed: int, shape: Callable[[float], float], peak: float
) -> list[float]:
    """Returns about `count` arrivals. The rate at the time t is `rate` * `shape(t)`.

    `peak` is the maximum of `shape`.
    """
    random_ = random.Random(seed)
    length = count / rate
    times = []
    t = 0.0
    while (t := t + random_.expovariate(rate * peak)) < length:
        if random_.random() * peak < shape(t):
            times.append(t)
    return times


TRACES = {"poisson": poisson, "on/off": on_off, "ramp": ramp, "bursts of 128": bursts}
