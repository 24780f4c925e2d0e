"""Arrival times of requests in an open loop, which does not wait for responses."""

from __future__ import annotations

import random


def poisson(rate: float, duration: float, seed: int) -> list[float]:
    """Returns random arrival times like those of independent clients (a Poisson process).

    Args:
        rate: Average number of requests per second.
        duration: Number of seconds in which requests arrive.
        seed: Seed of the random numbers.

    Returns:
        Times in seconds since the start, in ascending order.
    """
    source = random.Random(seed)
    times = []
    now = 0.0
    while (now := now + source.expovariate(rate)) < duration:
        times.append(now)
    return times


def constant(rate: float, duration: float, seed: int) -> list[float]:
    """Returns evenly spaced arrival times. The first time is random within the first interval.

    The arguments and the result are as in `poisson`.
    """
    offset = random.Random(seed).random()
    return [(number + offset) / rate for number in range(round(rate * duration))]
