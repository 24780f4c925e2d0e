"""Arrival times of an open loop."""

from __future__ import annotations

import random


def poisson(rate: float, duration: float, seed: int) -> list[float]:
    """Returns the arrival times of independent clients.

    Args:
        rate: Requests per second, on average.
        duration: Seconds.
        seed: Seed of the random numbers.

    Returns:
        Seconds from the start, increasing.
    """
    source = random.Random(seed)
    times = []
    now = 0.0
    while (now := now + source.expovariate(rate)) < duration:
        times.append(now)
    return times


def constant(rate: float, duration: float, seed: int) -> list[float]:
    """Returns evenly spaced arrival times, the first at a random moment of the first interval.

    The arguments and the result are those of `poisson`.
    """
    offset = random.Random(seed).random()
    return [(number + offset) / rate for number in range(round(rate * duration))]
