"""Runs a mixed load at 70 % of the server's capacity, and looks for growth.

    python -m tests.faults.soak --minutes 60

The first fifth is ignored. Memory needs more than ten minutes to settle, so shorter runs only show
that the tool works; the slope of the second half is reported too. The exit status is 1 if the whole
95 % interval of a slope (see `slope.py`) is above its bound, or if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

from tests.faults.observed import OBSERVED
from tests.faults.process import Restarted, descriptors, resident, threads
from tests.faults.slope import BLOCKS, Slope, slope
from tests.faults.traffic import Account, Traffic, report, two_versions

CLIENTS = 16
SHARE = 0.7
MEASURED = 10.0
"""Seconds in which the maximum rate is measured."""
BOUNDS = {
    "memory, MB": 4.0,
    "descriptors": 1.0,
    "threads": 0.1,
    "temporary files": 0.1,
    "tasks": 1.0,
}
"""Growth per hour that is tolerated."""
OF_BLOCK = {"tasks": np.min}
"""Value of a block that is fitted, if not the mean. A task that leaks stays in the minimum."""


class Soak:
    def __init__(self, seconds: float, store: pathlib.Path, temporary: pathlib.Path) -> None:
        self.account = Account()
        self.rate = 0.0
        self.times: list[float] = []
        self.samples: dict[str, list[float]] = {name: [] for name in BOUNDS}
        self._seconds = seconds
        self._temporary = temporary
        self._server = Restarted(
            *OBSERVED,
            TMPDIR=str(temporary),
            SHOAL_MODEL_STORE=str(store),
            SHOAL_MODEL_VERSION="1",
            SHOAL_LOG_LEVEL="warning",
        )
        self._traffic = Traffic(self._server.port, store, self.account, self._server.was_away)

    async def run(self) -> None:
        try:
            await self._server.start()
            await self._ask(MEASURED, None)
            self.rate = SHARE * self.account.asked / MEASURED
            print(f"{self.account.asked / MEASURED:,.0f} requests/s at most", flush=True)
            sampling = asyncio.create_task(self._sample())
            await self._ask(self._seconds, self.rate)
            sampling.cancel()
            if (status := await self._server.stop()) != 0:
                self.account.violations.append(f"exit status {status}")
        finally:
            self._server.end()
        self.account.close()

    async def _ask(self, seconds: float, rate: float | None) -> None:
        """Sends at most `rate` requests per second in total, each client at its own moments."""
        began = time.monotonic()
        turns = itertools.count()

        def over() -> bool:
            return time.monotonic() > began + seconds

        def pause() -> float:
            if rate is None:
                return 0
            return max(0.0, began + next(turns) / rate - time.monotonic())

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._traffic.client(over, pause))

    async def _sample(self) -> None:
        every = max(0.2, self._seconds / 3600)
        pid = self._server.server.pid
        began = time.monotonic()
        await asyncio.sleep(2)  # the first word of tasks
        while True:
            await asyncio.sleep(every)
            self.times.append(time.monotonic() - began)
            found = {
                "memory, MB": resident(pid),
                "descriptors": descriptors(pid),
                "threads": threads(pid),
                "temporary files": sum(len(files) for *_, files in os.walk(self._temporary)),
                "tasks": self._server.server.log_of("tasks")["tasks"],
            }
            for name, value in found.items():
                self.samples[name].append(value)

    def report(self) -> bool:
        """Prints the results. Returns whether anything grows."""
        fifth, half = len(self.times) // 5, len(self.times) // 2
        grows = False
        print(
            f"{'':16}{'first':>10}{'last':>10}{'per hour':>10}{'95 % interval':>20}{'bound':>8}"
            f"{'second half':>22}"
        )
        for name, bound in BOUNDS.items():
            values = self.samples[name]
            of_block = OF_BLOCK.get(name, np.mean)
            found = slope(self.times[fifth:], values[fifth:], of_block)
            later = slope(self.times[half:], values[half:], of_block)
            verdict = "GROWS" if found.low > bound else ""
            grows |= found.low > bound
            print(
                f"{name:16}{values[fifth]:>10,.1f}{values[-1]:>10,.1f}{found.value:>10,.2f}"
                f"{_interval(found):>20}{bound:>8}{_interval(later):>22} {verdict}"
            )
        return grows


def _interval(found: Slope) -> str:
    return f"{found.low:,.2f} to {found.high:,.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Look for leaks under constant load.")
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    if options.minutes < 0.5:
        parser.error("--minutes must be at least 0.5: slopes need samples")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as temporary:
        two_versions(pathlib.Path(folder))
        soak = Soak(60 * options.minutes, pathlib.Path(folder), pathlib.Path(temporary))
        asyncio.run(soak.run())
    print(soak.account.table())
    print(f"{soak.rate:,.0f} requests/s intended; {len(soak.times):,} samples in {BLOCKS} blocks")
    grows = soak.report()
    return report(soak.account.violations) or int(grows)


if __name__ == "__main__":
    sys.exit(main())
