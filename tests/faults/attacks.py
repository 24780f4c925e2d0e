"""Runs each attack against a real server with limited memory, beside an honest client.

    python -m tests.faults.attacks [--only WORD,WORD] [--json FILE] [--photos FOLDER]

Prints a Markdown table: what each attack sent, what it cost the server, what it received, and its
effect on the honest client. The exit status is 1 if the server did not survive an attack. Attacks
on gRPC are skipped if the extra is not installed.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import pathlib
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from tests.faults import hostile
from tests.faults.attackers import SECONDS, attacking, names, seconds_of
from tests.faults.honest import Account, Honest, photos, picture
from tests.faults.target import LIMIT, Target
from tests.faults.wire import post
from tests.service.synthetic import encode

RATE = 25.0
"""Photos per second of the honest client."""
REST = 10.0
"""Seconds within which memory must return to its value at rest, up to `SLACK` MiB."""
SLACK = 64.0


@dataclass
class Row:
    """The result of one attack."""

    attack: str
    seconds: float = 0.0
    bytes_sent: int = 0
    requests: int = 0
    got: str = ""
    cpu_seconds: float = 0.0
    """CPU time of the server, without that of the honest client's requests."""
    one_cpu_seconds: float = math.nan
    """CPU time for one such file on an idle server. NaN: the attack is not a file."""
    one_mib: float = math.nan
    """Memory above rest for that file."""
    peak_mib: float = 0.0
    after_mib: float = 0.0
    """Memory above rest, 10 s after the attack or as soon as it has returned."""
    answered: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    survived: bool = False
    broken: str = ""
    """Formats whose valid images are no longer answered."""
    killed: int = 0
    """Processes that the kernel killed because of the memory limit."""


class Attacks:
    def __init__(self, target: Target, rate: float, pictures: list[bytes], seconds: float) -> None:
        self._target, self._rate, self._pictures = target, rate, pictures
        self._seconds = seconds
        self._rest = 0.0
        self._cost = 0.0  # CPU seconds per second of the honest client

    async def measure_rest(self) -> Row:
        """Measures the honest client alone."""
        await self._honest().run(2)
        await asyncio.to_thread(self._target.wait_until_quiet)
        self._rest = self._target.group.memory()
        self._target.group.reset_peak()
        before, began = self._target.group.cpu_seconds(), time.monotonic()
        account = await self._honest().run(self._seconds)
        cpu = self._target.group.cpu_seconds() - before
        self._cost = cpu / (time.monotonic() - began)
        row = Row("none", seconds=self._seconds, cpu_seconds=cpu, survived=True)
        row.peak_mib = self._target.group.peak()
        return _with(row, account)

    async def one(self, name: str) -> Row:
        """Runs one attack, then waits until memory has returned."""
        target, group = self._target, self._target.group
        row = Row(name, seconds=seconds_of(name, self._seconds))
        killed = group.killed()
        if name in hostile.FILES:
            image = hostile.FILES[name]()
            group.reset_peak()
            row.one_cpu_seconds = await asyncio.to_thread(self._alone, image)
            row.one_mib = group.peak() - self._rest
        if not target.server.running():
            row.got, row.bytes_sent, row.requests = "the end of the server", len(image), 1
        else:
            group.reset_peak()
            before = group.cpu_seconds()
            with attacking(name, target.port, target.grpc_port, row.seconds) as wait:
                account = await self._honest().run(row.seconds)
                result = await asyncio.to_thread(wait)
            await asyncio.to_thread(target.wait_until_quiet, REST)
            spent = group.cpu_seconds() - before - self._cost * row.seconds
            row.cpu_seconds, row.peak_mib = max(0.0, spent), group.peak()
            _with(row, account)
            row.bytes_sent, row.requests = result.get("bytes_sent", 0), result.get("requests", 0)
            row.got = got(result)
        row.killed = group.killed() - killed
        ended = time.monotonic() + REST
        row.survived = await asyncio.to_thread(target.serves) and not row.killed
        if row.survived:
            row.broken = await self._broken(ended)
        memory = await asyncio.to_thread(
            target.memory_after, ended - time.monotonic(), self._rest, SLACK
        )
        row.after_mib = memory - self._rest
        if not row.survived or row.broken or row.after_mib > SLACK:
            await self.start_again()
        return row

    async def start_again(self) -> None:
        """Restarts the server, so that rows do not depend on their order."""
        await asyncio.to_thread(self._target.restart)
        await self._honest().run(2)

    async def _broken(self, end: float) -> str:
        """Returns the formats whose valid images are not answered with 200, neither by `end` nor
        once afterwards."""
        broken = []
        for kind, image in sound().items():
            request = post("/predict", f"image/{kind.lower()}", image, "Connection: close\r\n")
            while await _send(self._target.port, request) != 200:
                if time.monotonic() > end:
                    broken.append(kind)
                    break
                await asyncio.sleep(0.5)
        return ", ".join(broken)

    def _honest(self) -> Honest:
        return Honest(self._target.port, self._rate, self._pictures)

    def _alone(self, image: bytes) -> float:
        """Returns the CPU seconds of one request with `image` to an idle server."""
        self._target.wait_until_quiet()
        before = self._target.group.cpu_seconds()
        request = post("/predict", "image/png", image, "Connection: close\r\n")
        asyncio.run(_send(self._target.port, request))
        self._target.wait_until_quiet()
        return self._target.group.cpu_seconds() - before


@functools.cache
def sound() -> dict[str, bytes]:
    """Returns an image of VGA size in each format."""
    vga = picture(np.random.default_rng(0))
    return {
        kind: encode(vga.quantize(64) if kind == "GIF" else vga, kind)
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")
    }


async def _send(port: int, request: bytes) -> int:
    """Returns the status, or 0 without an answer."""
    try:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=("127.0.0.3", 0)
            )
            writer.write(request)
            told = await reader.read()
            writer.close()
            return int(told[9:12] or 0)
    except OSError:
        return 0


def got(result: dict[str, Any]) -> str:
    """Describes the answers that an attacker got."""
    answers = [
        f"{count:,} x {status}" for status, count in sorted(result.get("answers", {}).items())
    ]
    if result.get("held"):
        answers.append(f"{result['held']:,} places held")
    if result.get("note"):
        answers.append(result["note"].strip())
    return ", ".join(answers) or "nothing"


COLUMNS = (
    "attack", "sent", "requests", "attacker got", "CPU, s", "CPU of one, s", "MiB of one",
    "peak, MiB", "above rest after, MiB", "honest answered", "p50, ms", "p99, ms", "survived",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    heads = "| " + " | ".join(COLUMNS) + " |"
    return "\n".join([heads, "|" + "---|" * len(COLUMNS), *map(line, rows)])


def line(row: Row) -> str:
    def number(value: float | None, form: str = ",.0f") -> str:
        return "" if value is None or math.isnan(value) else format(value, form)

    cells = [
        row.attack,
        size(row.bytes_sent),
        f"{row.requests:,}",
        row.got,
        f"{row.cpu_seconds:.1f}",
        number(row.one_cpu_seconds, ".3f"),
        number(row.one_mib),
        f"{row.peak_mib:,.0f}",
        f"{row.after_mib:+,.0f}",
        f"{row.answered:.0%}",
        number(row.p50_ms),
        number(row.p99_ms),
        fate(row),
    ]
    return "| " + " | ".join(cells) + " |"


def fate(row: Row) -> str:
    if not row.survived:
        return f"**no** ({f'{row.killed} killed' if row.killed else 'does not answer'})"
    return f"**not for {row.broken}**" if row.broken else "yes"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _with(row: Row, account: Account) -> Row:
    found = account.to_dict()
    row.answered, row.p50_ms, row.p99_ms = found["answered"], found["p50_ms"], found["p99_ms"]
    return row


def settings(workers: int) -> dict[str, str]:
    """Returns the server's default settings, with gRPC if it is installed."""
    found = {"SHOAL_GRPC_PORT": "0"} if find_spec("grpc") else {}
    return found | ({"SHOAL_WORKERS": str(workers)} if workers > 1 else {})


async def run(options: argparse.Namespace) -> list[Row]:
    with Target(options.mebibytes, **settings(options.workers)) as target:
        print(f"Memory limit: {options.mebibytes} MiB by {target.group.name}", file=sys.stderr)
        attacks = Attacks(target, options.rate, photos(options.photos), options.seconds)
        rows = [await attacks.measure_rest()]
        words = options.only.lower().split(",")
        chosen = [name for name in names() if any(word in name.lower() for word in words)]
        for name in chosen:
            if name.startswith("gRPC") and target.grpc_port is None:
                continue
            rows.append(await attacks.one(name))
            print(line(rows[-1]), file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run each attack, and measure how much it costs the server."
    )
    parser.add_argument("--only", default="", help="attacks whose names contain one of these words")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="length of most attacks in seconds"
    )
    parser.add_argument(
        "--rate", type=float, default=RATE, help="photos per second of the honest client"
    )
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs for the honest client")
    parser.add_argument(
        "--mebibytes", type=int, default=LIMIT, help="memory limit of the server in MiB"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of front ends")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    print(table(rows))
    return 0 if all(row.survived and not row.broken for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
