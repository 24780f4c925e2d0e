"""An honest client, which sends photos at a constant rate, whether or not the server keeps up."""

from __future__ import annotations

import asyncio
import functools
import io
import pathlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from shoal.load.connection import FAILED, TIMED_OUT, Connection, connect
from tests.faults.wire import post

ADDRESS = "127.0.0.2"
SIZE = (640, 480)
PATIENCE = 10.0


@dataclass
class Account:
    """Results of the requests of an honest client. Latencies are seconds from the intended
    moment."""

    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Latencies of answers with status 200."""

    @property
    def answered(self) -> float:
        """Share of requests answered with 200."""
        return self.statuses["200"] / self.asked if self.asked else 0.0

    def percentile(self, percent: float) -> float:
        """Returns a latency in seconds, infinite if no request was answered."""
        if not self.latencies:
            return float("inf")
        return float(np.percentile(self.latencies, percent, method="higher"))

    def add(self, other: Account) -> None:
        self.asked += other.asked
        self.statuses += other.statuses
        self.latencies += other.latencies

    def to_dict(self) -> dict[str, Any]:
        p50, p99 = (self.percentile(percent) for percent in (50, 99))
        finite = bool(self.latencies)
        return {
            "asked": self.asked,
            "answered": round(self.answered, 4),
            "statuses": dict(self.statuses),
            "p50_ms": round(1000 * p50, 1) if finite else None,
            "p99_ms": round(1000 * p99, 1) if finite else None,
        }


class Honest:
    """Sends `rate` photos per second from `address`, on connections that it keeps."""

    def __init__(self, port: int, rate: float, photos: list[bytes], address: str = ADDRESS) -> None:
        self._port, self._rate, self._address = port, rate, address
        self._requests = [post("/predict", "image/jpeg", photo) for photo in photos]
        self._idle: list[Connection] = []

    async def run(self, seconds: float) -> Account:
        """Sends requests for `seconds`, then waits for the last answers."""
        account, began = Account(), time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(max(1, int(self._rate * seconds))):
                intended = began + number / self._rate
                await asyncio.sleep(max(0.0, intended - time.monotonic()))
                request = self._requests[number % len(self._requests)]
                group.create_task(self._ask(request, intended, account))
        self.close()
        return account

    async def once(self, number: int) -> int:
        """Sends one request. Returns its status, or 0 or less without an answer."""
        return await self._ask(self._requests[number % len(self._requests)], 0.0, Account())

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _ask(self, request: bytes, intended: float, account: Account) -> int:
        account.asked += 1
        connection = None
        try:
            async with asyncio.timeout(PATIENCE):
                connection = await self._connection()
            status, _ = await connection.request(request, PATIENCE)
        except TimeoutError:
            status = TIMED_OUT
        except OSError:
            status = FAILED
        if status > 0:
            account.statuses[str(status)] += 1
            if connection is not None and connection.usable:
                self._idle.append(connection)
        else:
            account.statuses["timed out" if status == TIMED_OUT else "cut off"] += 1
            if connection is not None:
                connection.close()
        if status == 200:
            account.latencies.append(time.monotonic() - intended)
        return status

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return await connect("127.0.0.1", self._port, local_host=self._address)


@functools.cache
def made_up(count: int = 8) -> list[bytes]:
    """Generates VGA images with the statistics of photos: smooth areas, edges and some noise."""
    dice = np.random.default_rng(0)
    return [_jpeg(picture(dice)) for _ in range(count)]


def photos(folder: pathlib.Path | None, count: int = 32) -> list[bytes]:
    """Returns the photos of a folder at VGA size, or generated ones."""
    if folder is None:
        return made_up()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    return [_jpeg(Image.open(file).convert("RGB").resize(SIZE)) for file in files[:count]]


def picture(dice: np.random.Generator) -> Image.Image:
    """Generates one image."""
    coarse = Image.fromarray(dice.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = coarse.resize(SIZE, Image.Resampling.BICUBIC)
    fine = Image.fromarray(dice.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8))
    return Image.blend(smooth, fine.filter(ImageFilter.GaussianBlur(1)), 0.2)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
