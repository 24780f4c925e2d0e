"""Combines load, bombs, slow and disconnecting clients, replaced models and kill -9.

    python -m tests.faults.chaos --minutes 30 [--workers 2]

With several processes, one is killed at a time, and sometimes all of them. Every request is
accounted for, and every answer is compared with what its version computes. The exit status is 1 on
any violation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
from typing import Any

from service.workers.supervisor import ENGINE
from shoal.load.connection import FAILED, TIMED_OUT
from tests.e2e.process import REAL
from tests.e2e.test_swap import HEADERS, KEY, NAME
from tests.faults.process import Restarted
from tests.faults.traffic import PATIENCE, Account, Traffic, report, two_versions
from tests.faults.wire import post, read_all
from tests.service import synthetic

CLIENTS, LEAVERS, BOMBERS, SLOW = 12, 2, 2, 50
SETTINGS = {
    "SHOAL_ADMIN_KEYS": KEY,
    "SHOAL_LOG_LEVEL": "warning",
    "SHOAL_PRECISION": "fp32",
    "SHOAL_UPLOAD_TIMEOUT": "8",
    "SHOAL_MAX_IMAGE_PIXELS": "16000000",
    "SHOAL_MAX_UPLOAD_MEMORY": str(64 * 2**20),
}


def memory_limit(workers: int) -> int:
    """Returns the memory limit in MB, from docs/reliability.md: the engine, a second network while
    it loads, uploads, and for several processes what each needs at rest and to decode."""
    return 260 + 150 + 64 + workers * 13 * 16 + (90 * (workers + 1) if workers > 1 else 0)


class Chaos:
    def __init__(
        self, seconds: float, kill_every: float, workers: int, seed: int, store: pathlib.Path
    ) -> None:
        self.account = Account()
        self.max_memory = 0.0
        self.reloads = 0
        served = {"SHOAL_MODEL_STORE": str(store), "SHOAL_MODEL_VERSION": "1"}
        self.server = Restarted(*REAL, SHOAL_WORKERS=str(workers), **served, **SETTINGS)
        self._traffic = Traffic(self.server.port, store, self.account, self.server.was_away)
        self._dice = random.Random(seed)
        self._kill_every = kill_every
        # In turns, so that none dies more often than the supervisor tolerates.
        front_ends = [f"front-end-{number}" for number in range(1, workers + 1)]
        self._victims = itertools.cycle([ENGINE, *front_ends, None] if workers > 1 else [None])
        self._memory_limit = memory_limit(workers)
        self._seconds = seconds
        self._end = 0.0

    async def run(self) -> None:
        try:
            await self.server.start()
            self._end = time.monotonic() + self._seconds
            await self._all()
            if (status := await self.server.stop()) != 0:
                self.account.violations.append(f"exit status {status}")
            self._read_log()
        finally:
            self.server.end()
        self.account.close()

    async def _all(self) -> None:
        parts: list[Coroutine[Any, Any, None]] = [self._kill(), self._reload(), self._measure()]
        parts += [self._traffic.client(self._over, self._pause) for _ in range(CLIENTS)]
        parts += [self._leave() for _ in range(LEAVERS)]
        parts += [self._bomb() for _ in range(BOMBERS)]
        parts += [self._drip() for _ in range(SLOW)]
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)

    def _over(self) -> bool:
        return time.monotonic() > self._end

    def _pause(self) -> float:
        return self._dice.expovariate(20)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, min(seconds, self._end - time.monotonic())))

    async def _kill(self) -> None:
        while True:
            await self._sleep(self._dice.uniform(0.5, 1.5) * self._kill_every)
            if self._over():
                return
            if victim := next(self._victims):
                await self.server.kill_one(victim)
                continue
            self._read_log()
            await self.server.kill()
            self.server.end()
            await self.server.start()

    async def _reload(self) -> None:
        """Replaces the model by API calls and by SIGHUP. A rejected call must state its reason."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()).encode()
        while not self._over():
            await self._sleep(self._dice.uniform(0.2, 3))
            if self._dice.random() < 0.2:
                with contextlib.suppress(ProcessLookupError):
                    self.server.server.send(signal.SIGHUP)
                continue
            version = self._dice.choice("12123")  # there is no 3
            body = b'{"parameters": {"version": "%s"}}' % version.encode()
            request = post(f"/v2/repository/models/{NAME}/load", "application/json", body)
            status = await self._alone(request.replace(b"\r\n", b"\r\n" + extra, 1))
            self.reloads += status == 200

    async def _bomb(self) -> None:
        bombs = list(synthetic.bombs().values())
        while not self._over():
            await self._alone(post("/predict", "image/png", self._dice.choice(bombs)))
            await self._sleep(self._dice.uniform(0.05, 0.5))

    async def _alone(self, request: bytes) -> int:
        """Sends one request on its own connection. Returns the status."""
        began = time.monotonic()
        connection = await self._traffic.connect()
        if connection is None:
            await self._sleep(0.1)
            return FAILED
        self.account.asked += 1
        status, body = await connection.request(request, PATIENCE)
        connection.close()
        if status == 200:
            self.account.ends["answered, with nothing to compare"] += 1
        elif status not in (FAILED, TIMED_OUT):
            self.account.refused(status, body)
        elif self.server.was_away(began):
            self.account.ends["cut off: the server was killed"] += 1
        else:
            self.account.violation(f"{request[:80]!r}: cut off or no answer ({status})")
        return status

    async def _leave(self) -> None:
        """Sends requests and disconnects, before or after the answer."""
        while not self._over():
            connection = await self._traffic.connect()
            if connection is None:
                await self._sleep(0.1)
                continue
            self.account.asked += 1
            connection.send(self._traffic.request([0]), lambda *_: None)
            await self._sleep(self._dice.uniform(0, 0.02))
            connection.close()
            self.account.ends["its client left"] += 1
            await self._sleep(self._dice.uniform(0, 0.2))

    async def _drip(self) -> None:
        """Sends a head or a body at one byte per second."""
        while not self._over():
            began = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            except OSError:
                await self._sleep(0.5)
                continue
            self.account.asked += 1
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
            if in_body := self._dice.random() < 0.5:
                head += b"no\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
            answer = await self._until_cut(reader, writer, head)
            writer.close()
            if answer:
                status, _, body = answer.partition(b"\r\n\r\n")
                self.account.refused(int(status.split()[1]), body)
            elif self.server.was_away(began):
                self.account.ends["cut off: the server was killed"] += 1
            elif self._over():
                self.account.ends["its client left"] += 1
            elif in_body:
                self.account.violation("a slow body was cut off without an answer")
            else:
                self.account.ends["cut off: a head of more than 10 s"] += 1

    async def _until_cut(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> bytes:
        answer = asyncio.ensure_future(read_all(reader))
        writer.write(head)
        while not answer.done() and not self._over():
            writer.write(b"x")
            await asyncio.wait({answer}, timeout=1)
        answer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await answer
        return b""

    async def _measure(self) -> None:
        while not self._over():
            with contextlib.suppress(OSError, IndexError):  # it is no more, or ends
                self.max_memory = max(self.max_memory, self.server.resident())
            await self._sleep(0.5)
        if self.max_memory > self._memory_limit:
            self.account.violations.append(f"{self.max_memory:.0f} MB of memory")

    def _read_log(self) -> None:
        """Counts errors in the log as violations, except those that this test causes: missing
        versions and killed processes."""
        for record in self.server.server.log():
            expected = (
                "version" in record["message"]
                or "stays as it was" in record["message"]
                or (record["message"], record.get("status")) == ("a process ended", -signal.SIGKILL)
            )
            if record["level"] in ("error", "critical") and not expected:
                self.account.violations.append(f"in the log: {record}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run load and all faults at the same time.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--kill-every", type=float, default=20, help="mean number of seconds between two kills"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of front ends")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder)
        two_versions(store)
        seconds, every = 60 * options.minutes, options.kill_every
        chaos = Chaos(seconds, every, options.workers, options.seed, store)
        asyncio.run(chaos.run())
    print(chaos.account.table())
    for victim, count in sorted(chaos.server.kills.items()):
        print(f"{count:>9,}  times killed and started again: {victim}")
    allowed = memory_limit(options.workers)
    print(
        f"{chaos.reloads:>9,}  times another version loaded\n"
        f"{chaos.max_memory:>9,.0f}  MB of memory at most, of {allowed:,} allowed"
    )
    return report(chaos.account.violations)


if __name__ == "__main__":
    sys.exit(main())
