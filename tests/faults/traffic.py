"""Requests whose answers are known, and an account of how each request ended.

Two versions of the network that ships are served in turns. The second has its outputs in reverse
order and other names of classes. NumPy computes the answer of each version to each image. An answer
is right if it is the one of the version that it names.
"""

from __future__ import annotations

import asyncio
import pathlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import orjson

from model_store import manifest, versions
from model_store.params import read_params, write_params
from shoal.load.connection import FAILED, TIMED_OUT, Connection, connect
from tests.e2e.test_swap import CLASSES, NAME, TOLERANCE, add
from tests.faults.wire import post
from tests.reference import probabilities
from tests.service.conftest import png

IMAGES = 16
PATIENCE = 30.0
REFUSED = {400, 401, 404, 408, 409, 413, 415, 422, 429, 431, 503, 504}
"""Statuses of rejections. Other statuses except 200 are violations."""


def two_versions(store: pathlib.Path) -> None:
    """Fills a store with versions 1 and 2."""
    ours = versions.folder(manifest.STORE, NAME, "1")
    shutil.copytree(ours, store / NAME / "1")
    arrays = dict(read_params(ours / "net.params"))
    for output in "output.weight", "output.bias":
        arrays[output] = arrays[output][::-1]
    add(store, "2", lambda path: write_params(path, arrays), classes=CLASSES["2"])


class Account:
    """Counts how requests ended: answered, rejected with a code, left by the client, or cut off
    when the server was killed. Anything else is a violation, and the first ones are described."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.asked = 0
        self.violations: list[str] = []

    def violation(self, what: str) -> None:
        self.ends["VIOLATION"] += 1
        self.violations.append(what)

    def refused(self, status: int, body: bytes) -> None:
        """Records an answer other than 200."""
        try:
            code = str(orjson.loads(body).get("code", "of the v2 protocol"))
        except ValueError:
            code = "unreadable"
        if status in REFUSED and code != "unreadable":
            self.ends[f"refused: {status} {code}"] += 1
        else:
            self.violation(f"{status} {body[:200]!r}")

    def close(self) -> None:
        """Checks that every request has ended in exactly one way."""
        if self.asked != self.ends.total():
            self.violations.append(f"{self.asked} requests, and {self.ends.total()} ends")

    def table(self) -> str:
        rows = [f"{count:>9,}  {end}" for end, count in sorted(self.ends.items())]
        return "\n".join([*rows, f"{self.asked:>9,}  requests in all"])


class Traffic:
    """Sends requests on its own connections. `was_killed(since)` says whether the server was killed
    or unavailable at any time since then."""

    def __init__(
        self, port: int, store: pathlib.Path, account: Account, was_killed: Callable[[float], bool]
    ) -> None:
        self.account = account
        self.latency: list[float] = []
        self._port = port
        self._was_killed = was_killed
        reds = [15 * number for number in range(IMAGES)]
        pixels = np.zeros((IMAGES, 32, 32, 3), np.uint8)
        pixels[..., 0] = np.array(reds)[:, None, None]
        self._expected = {
            version: probabilities(read_params(store / NAME / version / "net.params"), pixels)
            for version in CLASSES
        }
        self._pictures = [png(red) for red in reds]

    async def client(self, until: Callable[[], bool], pause: Callable[[], float]) -> None:
        """Sends one request after the other until `until()`."""
        connection: Connection | None = None
        dice = random.Random()
        while not until():
            if connection is None or not connection.usable:
                connection = await self.connect()
            if connection is None:
                await asyncio.sleep(0.05)
                continue
            numbers = [dice.randrange(IMAGES) for _ in range(dice.choice((1, 1, 1, 1, 4)))]
            await self.ask(connection, numbers)
            if wait := pause():
                await asyncio.sleep(wait)
        if connection is not None:
            connection.close()

    async def connect(self) -> Connection | None:
        """Opens a connection. None: there is no server at the moment."""
        began = time.monotonic()
        try:
            return await connect("127.0.0.1", self._port)
        except OSError as error:
            if not self._was_killed(began):
                self.account.asked += 1
                self.account.violation(f"no connection: {error}")
            return None

    def request(self, numbers: list[int]) -> bytes:
        if len(numbers) == 1:
            return post("/predict", "image/png", self._pictures[numbers[0]])
        parts = [
            b'--b\r\nContent-Disposition: form-data; name="img"; filename="a.png"\r\n\r\n'
            + self._pictures[number]
            + b"\r\n"
            for number in numbers
        ]
        body = b"".join([*parts, b"--b--\r\n"])
        return post("/predict/batch", "multipart/form-data; boundary=b", body)

    async def ask(self, connection: Connection, numbers: list[int]) -> None:
        """Sends the images with these numbers, and records how the request ends."""
        self.account.asked += 1
        began = time.monotonic()
        status, body = await connection.request(self.request(numbers), PATIENCE)
        self.latency.append(time.monotonic() - began)
        if status == 200:
            self._check(orjson.loads(body), numbers)
        elif status in (FAILED, TIMED_OUT):
            if self._was_killed(began):
                self.account.ends["cut off: the server was killed"] += 1
            else:
                what = "cut off" if status == FAILED else "no answer"
                self.account.violation(f"{what} ({status})")
        else:
            self.account.refused(status, body)

    def _check(self, body: dict[str, object], numbers: list[int]) -> None:
        predictions = body.get("predictions", [body])
        assert isinstance(predictions, list)
        if len(predictions) != len(numbers):
            self.account.violation(f"{len(predictions)} answers to {len(numbers)} images")
            return
        partly = False
        for number, told in zip(numbers, predictions, strict=True):
            if "code" in told:
                partly = True
                if told["status"] not in REFUSED:
                    self.account.violation(f"in a batch: {told}")
                    return
                continue
            version = told["model"]["version"]
            expected = self._expected[version][number]
            shares = np.array(list(told["probabilities"].values()))
            best = int(expected.argmax())
            if (
                tuple(told["probabilities"]) != CLASSES[version]
                or told["class"] != CLASSES[version][best]
                or abs(told["probability"] - expected[best]) > TOLERANCE
                or np.abs(shares - expected).max() > TOLERANCE
            ):
                self.account.violation(f"not what version {version} computes: {told}")
                return
        self.account.ends["answered in part" if partly else "answered, and right"] += 1


def report(violations: list[str]) -> int:
    """Prints the first violations and their number. Returns the exit status: 1 if there are any."""
    for violation in violations[:20]:
        print(f"VIOLATION: {violation}")
    print(f"{len(violations):>9,}  violations")
    return 1 if violations else 0
