"""Devices: simulated engines with a formula for T(n), noise, padding, several lanes, and a device
that becomes slower halfway."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

LARGEST = 64
NOISE = 0.05
POWERS_OF_TWO = tuple(2**power for power in range(7))


@dataclass(frozen=True)
class Device:
    """Computes one batch at a time in each lane. Lanes do not slow each other down."""

    name: str
    seconds: Callable[[int], float]
    """Mean seconds of a batch, before the device becomes slower."""
    buckets: tuple[int, ...] = tuple(range(1, LARGEST + 1))
    """Sizes that batches are padded to."""
    slower: float = 1.0
    """Factor of all times in the second half of a run."""
    lanes: int = 1
    padded: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        sizes = range(LARGEST + 1)
        padded = tuple(min((b for b in self.buckets if b >= size), default=0) for size in sizes)
        object.__setattr__(self, "padded", padded)

    def mean(self, size: int) -> float:
        """Seconds for a batch of `size`, padding included."""
        return self.seconds(self.padded[size])

    def capacity(self, slo: float) -> float:
        """Maximum items per second in all lanes, by batches that take at most `slo` seconds."""
        within = [n / self.mean(n) for n in range(1, LARGEST + 1) if self.mean(n) <= slo]
        return self.lanes * max(within)


class Clockwork:
    """One device in one run. The k-th batch in a lane has the same noise with every policy."""

    def __init__(self, device: Device, half_time: float, seed: int) -> None:
        """
        Args:
            device: The device.
            half_time: Second at which it becomes slower.
            seed: Of the noise.
        """
        self.device = device
        self._half_time = half_time
        self._noise = [random.Random(seed + 1000 * lane) for lane in range(device.lanes)]
        self._warm_up_noise = random.Random(-1 - seed)
        self._free = [0.0] * device.lanes
        self.since_change = 0
        """Number of batches that began after it became slower."""

    @property
    def free_at(self) -> float:
        """When the first lane is free."""
        return min(self._free)

    def compute(self, size: int, now: float) -> float:
        """When a batch of `size` ends that is handed over now. The first free lane computes it."""
        lane = self._free.index(self.free_at)
        begins = max(now, self._free[lane])
        changed = begins >= self._half_time
        self.since_change += changed
        slower = self.device.slower if changed else 1.0
        seconds = self.device.mean(size) * slower * _noisy(self._noise[lane])
        self._free[lane] = begins + seconds
        return self._free[lane]

    def warm_up(self, runs: int) -> dict[int, list[float]]:
        """Bucket -> seconds of `runs` batches."""
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
        Device("two-lane cpu", _cpu, lanes=2),
    )
}
