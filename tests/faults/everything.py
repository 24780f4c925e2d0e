"""Runs all attacks beside honest clients, and accounts for every honest request.

    python -m tests.faults.everything --minutes 10 [--workers 2]

Two attacks run at a time, in random order, from addresses of their own. Each honest request must
get the right answer or a rejection with a code. The kernel may kill no process because of memory,
and memory must return to rest within 10 s after the last attack. The exit status is 1 on any
violation.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator

from tests.faults.attackers import attacking, names, seconds_of
from tests.faults.attacks import got, settings
from tests.faults.honest import Account as Photos
from tests.faults.honest import Honest, made_up
from tests.faults.target import LIMIT, Target
from tests.faults.traffic import Account, Traffic, report, two_versions

CLIENTS, AT_ONCE, RATE = 6, 2, 10.0
REST, SLACK = 10.0, 64.0
"""Seconds within which memory must return to its value at rest, up to `SLACK` MiB."""


class Everything:
    def __init__(self, target: Target, store: pathlib.Path, seconds: float, seed: int) -> None:
        self.account, self.photos = Account(), Photos()
        self.rest = self.after = self.peak = 0.0
        self._target, self._seconds = target, seconds
        self._dice = random.Random(seed)
        self._traffic = Traffic(target.port, store, self.account, lambda _: False)
        self._end = 0.0

    async def run(self) -> None:
        target, group = self._target, self._target.group
        self._end = time.monotonic() + 5
        await self._honest()  # what is used once is there afterwards
        await asyncio.to_thread(target.wait_until_quiet)
        self.rest, killed = group.memory(), group.killed()
        group.reset_peak()
        self._end = time.monotonic() + self._seconds
        attacks = self._attacks()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._honest())
            for _ in range(AT_ONCE):
                tasks.create_task(asyncio.to_thread(self._attack, attacks))
        self.peak = group.peak()
        ended = time.monotonic()
        self._expect(await asyncio.to_thread(target.serves), "the server is no longer ready")
        self._expect(group.killed() == killed, "the kernel killed a process because of memory")
        remaining = ended + REST - time.monotonic()
        self.after = await asyncio.to_thread(target.memory_after, remaining, self.rest, SLACK)
        self._expect(
            self.after <= self.rest + SLACK,
            f"{self.after:.0f} MiB of memory {REST:.0f} s afterwards, {self.rest:.0f} at rest",
        )
        for record in target.server.log():
            if record["level"] in ("error", "critical"):
                self.account.violations.append(f"in the log: {record}"[:500])
        self.account.close()

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.account.violations.append(otherwise)

    def _over(self) -> bool:
        return time.monotonic() > self._end

    async def _honest(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            photos = Honest(self._target.port, RATE, made_up())
            asking = tasks.create_task(photos.run(self._end - time.monotonic()))
            for _ in range(CLIENTS):
                tasks.create_task(self._client())
        self.photos.add(found := asking.result())
        for kind in ("cut off", "timed out"):
            if count := found.statuses[kind]:
                self.account.violations.append(f"{count} photos: {kind}")

    async def _client(self) -> None:
        """Sends one image after the other, each on its own connection. The server may close one
        that is kept at any time."""
        while not self._over():
            connection = await self._traffic.connect()
            if connection is not None:
                await self._traffic.ask(connection, [self._dice.randrange(16)])
                connection.close()
            await asyncio.sleep(self._dice.expovariate(10))

    def _attacks(self) -> Iterator[str]:
        while True:
            chosen = [name for name in names() if self._target.grpc_port or "gRPC" not in name]
            self._dice.shuffle(chosen)
            yield from chosen

    def _attack(self, attacks: Iterator[str]) -> None:
        target = self._target
        while not self._over():
            name = next(attacks)
            seconds = min(seconds_of(name), self._end - time.monotonic() + 1)
            with attacking(name, target.port, target.grpc_port, seconds) as wait:
                result = wait()
            memory = target.group.memory()
            print(f"{name}: {got(result)}; {memory:,.0f} MiB", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run all attacks and honest clients at the same time."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2, help="number of front ends")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--mebibytes", type=int, default=LIMIT, help="memory limit of the server in MiB"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder)
        two_versions(store)
        served = {"SHOAL_MODEL_STORE": folder, "SHOAL_MODEL_VERSION": "1"}
        chosen = {**settings(options.workers), **served, "SHOAL_PRECISION": "fp32"}
        with Target(options.mebibytes, **chosen) as target:
            print(f"Memory limit: {options.mebibytes} MiB by {target.group.name}", file=sys.stderr)
            everything = Everything(target, store, 60 * options.minutes, options.seed)
            asyncio.run(everything.run())
    print(everything.account.table())
    print(f"photos: {everything.photos.to_dict()}")
    print(
        f"memory: {everything.rest:,.0f} MiB at rest, {everything.peak:,.0f} at most, "
        f"{everything.after:,.0f} afterwards"
    )
    return report(everything.account.violations)


if __name__ == "__main__":
    sys.exit(main())
