"""Engines that exist as a formula: T(n), some noise, perhaps padding, perhaps a bad half."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

LARGEST = 64
NOISE = 0.05
POWERS_OF_TWO = tuple(2**power for power in range(7))


@dataclass(frozen=True)
class Device:
    """Computes one batch at a time. `seconds(n)` is the mean; times `slower` from half-time on."""

    name: str
    seconds: Callable[[int], float]
    buckets: tuple[int, ...] = tuple(range(1, LARGEST + 1))
    slower: float = 1.0
    padded: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = range(LARGEST + 1)
        padded = tuple(min((b for b in self.buckets if b >= size), default=0) for size in sizes)
        object.__setattr__(self, "padded", padded)

    def mean(self, size: int) -> float:
        """Seconds for a batch of `size`, padding included."""
        return self.seconds(self.padded[size])

    def capacity(self, slo: float) -> float:
        """The most items a second by batches that alone stay within the SLO."""
        within = [n / self.mean(n) for n in range(1, LARGEST + 1) if self.mean(n) <= slo]
        return max(within)


class Clockwork:
    """One device in one run: adds the noise, the same for every policy's k-th batch, and slows
    down at `half_time`."""

    def __init__(self, device: Device, half_time: float, seed: int) -> None:
        self.device = device
        self._half_time = half_time
        self._noise = random.Random(seed)
        self._warm_up_noise = random.Random(-1 - seed)

    def seconds(self, size: int, now: float) -> float:
        slower = self.device.slower if now >= self._half_time else 1.0
        return self.device.mean(size) * slower * _noisy(self._noise)

    def warm_up(self, runs: int) -> dict[int, list[float]]:
        """Some batches of every bucket."""
        return {
            bucket: [self.device.mean(bucket) * _noisy(self._warm_up_noise) for _ in range(runs)]
            for bucket in self.device.buckets
        }


def _noisy(random_: random.Random) -> float:
    return max(random_.gauss(1, NOISE), 0.5)


def _gpu(size: int) -> float:
    return 1.0e-3 + 0.02e-3 * size


def _cpu(size: int) -> float:
    return 0.3e-3 + 0.6e-3 * size


DEVICES = {
    device.name: device
    for device in (
        Device("gpu", _gpu),
        Device("cpu", _cpu),
        Device("padded gpu", _gpu, buckets=POWERS_OF_TWO),
        Device("padded cpu", _cpu, buckets=POWERS_OF_TWO),
        Device("throttled gpu", _gpu, slower=2.0),
    )
}
