"""Defines simulated devices that run batches.

A formula gives the mean time T(n) of a batch of n items. Random noise is added to the time of each
batch. Some devices pad batches to a bucket, which is one of a few sizes. One device has several
lanes, which run one batch each at the same time. One device becomes slower in the middle of a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

LARGEST = 64
"""Maximum number of items in a batch."""
NOISE = 0.05
"""Relative standard deviation of the time of a batch."""
POWERS_OF_TWO = tuple(2**power for power in range(7))


@dataclass(frozen=True)
class Device:
    """A device that runs one batch at a time in each lane.

    The number of busy lanes does not affect the speed of a lane.
    """

    name: str
    seconds: Callable[[int], float]
    """Returns the mean seconds of a batch, in the first half of a run. The argument is the batch
    size."""
    buckets: tuple[int, ...] = tuple(range(1, LARGEST + 1))
    """Sizes that batches are padded to."""
    slower: float = 1.0
    """Factor by which all times are multiplied in the second half of a run."""
    lanes: int = 1
    """Number of lanes."""
    padded: tuple[int, ...] = field(init=False)
    """Padded batch sizes. The index is the size of the batch before padding."""

    def __post_init__(self) -> None:
        sizes = range(LARGEST + 1)
        padded = tuple(min((b for b in self.buckets if b >= size), default=0) for size in sizes)
        object.__setattr__(self, "padded", padded)

    def mean(self, size: int) -> float:
        """Returns the mean seconds of a batch of `size` items, in the first half of a run."""
        return self.seconds(self.padded[size])

    def capacity(self, slo: float) -> float:
        """Returns the maximum number of items per second of all lanes together.

        Only batches that take at most `slo` seconds are considered.
        """
        within = [n / self.mean(n) for n in range(1, LARGEST + 1) if self.mean(n) <= slo]
        return self.lanes * max(within)


class Clockwork:
    """The state of a device in one run.

    The noise depends only on the seed, the lane and the number of batches that the lane has run. So
    all policies are simulated with the same noise.
    """

    def __init__(self, device: Device, half_time: float, seed: int) -> None:
        """
        Args:
            device: The device.
            half_time: Time in seconds at which the device becomes slower.
            seed: Seed of the noise.
        """
        self.device = device
        self._half_time = half_time
        self._noise = [random.Random(seed + 1000 * lane) for lane in range(device.lanes)]
        self._warm_up_noise = random.Random(-1 - seed)
        self._free = [0.0] * device.lanes
        self.since_change = 0
        """Number of batches that began after the device became slower."""

    @property
    def free_at(self) -> float:
        """Earliest time at which a lane is free."""
        return min(self._free)

    def compute(self, size: int, now: float) -> float:
        """Runs a batch of `size` items in the first free lane, and returns its end time."""
        lane = self._free.index(self.free_at)
        begins = max(now, self._free[lane])
        changed = begins >= self._half_time
        self.since_change += changed
        slower = self.device.slower if changed else 1.0
        seconds = self.device.mean(size) * slower * _noisy(self._noise[lane])
        self._free[lane] = begins + seconds
        return self._free[lane]

    def warm_up(self, runs: int) -> dict[int, list[float]]:
        """Returns the seconds of `runs` batches of each bucket, as measured at warm-up."""
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
