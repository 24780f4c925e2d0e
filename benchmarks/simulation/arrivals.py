"""Arrivals: when requests arrive, in increasing seconds; the same for every policy."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

BURST = Path(__file__).parent / "burst.json"


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Independent callers at a constant rate."""
    return _thinned(rate, count, seed, lambda _: 1.0, 1.0)


def on_off(rate: float, count: int, seed: int) -> list[float]:
    """Ten periods: a quarter of each at four times the rate, the remainder without arrivals."""
    period = count / rate / 10
    return _thinned(rate, count, seed, lambda t: 4.0 if t % period < period / 4 else 0.0, 4.0)


def ramp(rate: float, count: int, seed: int) -> list[float]:
    """One period from a tenth of the rate up to 1.9 times the rate and back."""
    day = count / rate
    return _thinned(rate, count, seed, lambda t: 1 - 0.9 * math.cos(2 * math.pi * t / day), 1.9)


def bursts(rate: float, count: int, seed: int) -> list[float]:
    """A tenth of the rate, and bursts of 128 requests that are sent at the same time.

    `python -m benchmarks.record_burst` recorded when the requests of a burst arrive.
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
    """About `count` arrivals at `rate` times `shape(t)`, which is at most `peak`."""
    random_ = random.Random(seed)
    length = count / rate
    times = []
    t = 0.0
    while (t := t + random_.expovariate(rate * peak)) < length:
        if random_.random() * peak < shape(t):
            times.append(t)
    return times


TRACES = {"poisson": poisson, "on/off": on_off, "ramp": ramp, "bursts of 128": bursts}
