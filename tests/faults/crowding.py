"""Measures whether attackers crowd out an honest client.

    python -m tests.faults.crowding [--rounds 5] [--corpus FOLDER] [--json FILE]

Ten addresses together send 100 KiB/s of the worst inputs, beside an honest client that sends photos
at a third of the server's capacity. Rounds with and without the attackers alternate. The exit
status is 1 if the attackers raise the client's 99th percentile by more than a factor of 3, less
than 95 % of its photos are answered, or the server ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

from tests.faults import hostile
from tests.faults.attackers import CROWD, CROWD_RATE, FOLDER, attacking
from tests.faults.attacks import got
from tests.faults.cost_search import CORPUS
from tests.faults.honest import Account, Honest, photos
from tests.faults.mutations import IMAGES
from tests.faults.target import LIMIT, Target

SLOWER, ANSWERED = 3.0, 0.95
CAPACITY_CLIENTS = 8


def collect(folder: pathlib.Path, corpus: pathlib.Path, without: str) -> int:
    """Writes the worst inputs to `folder`, except known ones whose names contain `without`. Returns
    their number. Those with the highest cost per byte come first."""
    known = [make() for name, make in WORST.items() if not without or without not in name]
    searched = [
        file.read_bytes()
        for file in sorted((corpus / "worst").glob("*"))
        if file.name.partition("-")[0] in IMAGES
    ]
    images = [*dict.fromkeys(known + searched)]
    for number, image in enumerate(images):
        (folder / f"{number:04}").write_bytes(image)
    return len(images)


WORST = {
    name: make
    for name, make in hostile.FILES.items()
    if name.startswith(
        (
            "GIF, disposal",
            "GIF, canvas 1 x 1",
            "WebP, lossless",
            "WebP, animated, every",
            "JPEG, progressive gray",
            "PNG, palette",
            "PNG, 16-bit gray",
            "BMP, 64 megapixels without",
            "BMP, width 0",
        )
    )
}


async def capacity(target: Target, pictures: list[bytes], seconds: float) -> float:
    """Returns the photos per second that clients get answered if they wait for each answer."""
    counted = 0
    end = time.monotonic() + seconds

    async def client() -> None:
        nonlocal counted
        honest = Honest(target.port, 1.0, pictures)
        while time.monotonic() < end:
            status = await honest.once(counted)
            counted += status == 200
        honest.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(CAPACITY_CLIENTS):
            group.create_task(client())
    return counted / seconds


async def run(options: argparse.Namespace) -> dict[str, Any]:
    pictures = photos(options.photos)
    without, beside, ended, attacked = Account(), Account(), 0, []
    rounds = []
    with (
        tempfile.TemporaryDirectory() as name,
        Target(options.mebibytes, SHOAL_WORKERS=str(options.workers)) as target,
    ):
        inputs = collect(pathlib.Path(name), options.corpus, options.leave_out)
        await capacity(target, pictures, 1)
        most = await capacity(target, pictures, 3)
        rate = options.rate or max(1.0, most / 3)
        print(
            f"{most:.0f} photos per second at most, {rate:.0f} sent; {inputs} hostile inputs; "
            f"memory limit: {target.group.name}",
            file=sys.stderr,
            flush=True,
        )
        for number in range(options.rounds):
            honest = Honest(target.port, rate, pictures)
            first = await honest.run(options.seconds)
            killed = target.group.killed()
            with attacking(FOLDER + name, target.port, None, options.seconds) as wait:
                second = await honest.run(options.seconds)
                attacked.append(await asyncio.to_thread(wait))
            without.add(first)
            beside.add(second)
            rounds.append({"without": first.to_dict(), "with": second.to_dict()})
            print(
                f"round {number + 1}: {rounds[-1]}; {got(attacked[-1])}",
                file=sys.stderr,
                flush=True,
            )
            await asyncio.to_thread(target.wait_until_quiet, 10)
            if not await asyncio.to_thread(target.serves) or target.group.killed() > killed:
                ended += 1
                await asyncio.to_thread(target.restart)
                await Honest(target.port, rate, pictures).run(1)
    slower = beside.percentile(99) / without.percentile(99)
    return {
        "rate": rate,
        "without": without.to_dict(),
        "with": beside.to_dict(),
        "slower": round(slower, 2),
        "ended": ended,
        "attackers_sent": sum(result.get("bytes_sent", 0) for result in attacked),
        "rounds": rounds,
        "passed": not ended and slower <= SLOWER and beside.answered >= ANSWERED,
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        f"| photos, {found['rate']:.0f} per second | answered | p50, ms | p99, ms |",
        "|---|---|---|---|",
    ]
    for title, key in (
        ("alone", "without"),
        (f"beside {CROWD} attackers, {CROWD_RATE // 1024} KiB/s", "with"),
    ):
        row = found[key]
        lines.append(f"| {title} | {row['answered']:.1%} | {row['p50_ms']} | {row['p99_ms']} |")
    lines.append(
        f"\np99 {found['slower']} times as long (at most {SLOWER}), the server ended "
        f"{found['ended']} times: {'passed' if found['passed'] else 'MISSED'}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures whether attackers crowd out an honest client."
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="length of each half of a round")
    parser.add_argument(
        "--rate", type=float, help="photos per second (default: a third of the capacity)"
    )
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs for the honest client")
    parser.add_argument(
        "--corpus",
        type=pathlib.Path,
        default=CORPUS,
        help="folder of the corpus of the cost search",
    )
    parser.add_argument(
        "--leave-out", default="", help="do not send known inputs with this text in the name"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of front ends")
    parser.add_argument(
        "--mebibytes", type=int, default=LIMIT, help="memory limit of the server in MiB"
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    options = parser.parse_args()
    found = asyncio.run(run(options))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if found["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
