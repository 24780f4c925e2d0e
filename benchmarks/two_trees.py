"""How does a change of the code change its speed? Two checkouts, loaded in turns.

    git worktree add ../before v0.1.0
    python -m benchmarks.two_trees ../before . --rounds 16

Both servers run at once, by this interpreter and with the same settings, and are loaded in turns of
a second: what a machine is worth changes from second to second, so only a ratio within a round
counts. CPU time is that of the server and of all processes below it. `--start` measures how long
they take until they are ready instead, each started alone.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvloop

from benchmarks.process import cpu_seconds
from shoal.load import images
from shoal.load.generator import Generator, Job
from shoal.load.report import summarise

START_UP = 60.0
SECONDS = 1.0
SMALL, VGA = images.made_up(32), images.made_up(640, 8, 480)
LARGE = images.made_up(4000, 2, 3000)


@dataclass(frozen=True)
class Load:
    pictures: list[images.Picture]
    raw: bool
    connections: int


LOADS = {
    "32 x 32, raw": Load(SMALL, True, 64),
    "32 x 32, form": Load(SMALL, False, 64),
    "640 x 480, raw": Load(VGA, True, 32),
    "640 x 480, form": Load(VGA, False, 32),
    "4000 x 3000, raw": Load(LARGE, True, 8),
    "640 x 480, one at a time": Load(VGA, True, 1),
}


@dataclass(frozen=True)
class Turn:
    """Requests per second, CPU seconds per request, and the median latency in seconds."""

    throughput: float
    cpu: float
    latency: float


class Server:
    """`python -m service` in a checkout."""

    def __init__(self, tree: pathlib.Path, port: int, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}/predict"
        self._ready = f"http://127.0.0.1:{port}/readyz"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            cwd=tree,
            env={**os.environ, "SHOAL_LOG_LEVEL": "error", "SHOAL_PORT": str(port), **environment},
        )

    def wait(self) -> None:
        """Until it is ready. Raises RuntimeError."""
        end = time.monotonic() + START_UP
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(self._ready) as answer:  # noqa: S310
                if answer.status == 200:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self.url} is not ready")

    def cpu_seconds(self) -> float:
        """Of the server and all processes below it."""
        return sum(cpu_seconds(pid) for pid in _family(self.process.pid))


def turn(server: Server, load: Load) -> Turn:
    """Raises RuntimeError unless every answer is 200."""
    url = urllib.parse.urlsplit(server.url)
    job = Job(
        url=server.url,
        requests=[images.request(url, picture, load.raw) for picture in load.pictures],
        expected=[None] * len(load.pictures),
        duration=SECONDS,
        timeout=20.0,
        seed=1,
        times=None,
        concurrency=load.connections,
    )
    before = server.cpu_seconds()
    found = uvloop.run(Generator(job, lambda answered, failed: None).run())
    cpu = server.cpu_seconds() - before
    run = summarise("", None, [found], 0.0, SECONDS)
    if set(run.statuses) != {"200"}:
        raise RuntimeError(f"answers under load: {run.statuses}")
    return Turn(run.achieved, cpu / sum(run.statuses.values()), run.latency["p50"])


@contextmanager
def serving(tree: pathlib.Path, port: int, environment: dict[str, str]) -> Iterator[Server]:
    server = Server(tree, port, environment)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait()


def compare(before: Server, after: Server, rounds: int, names: list[str]) -> None:
    print("| load | requests/s before | after / before | CPU, ms | lone or median latency, ms |")
    print("|---|---|---|---|---|")
    for name in names:
        for server in before, after:  # once unmeasured
            turn(server, LOADS[name])
        pairs = [(turn(before, LOADS[name]), turn(after, LOADS[name])) for _ in range(rounds)]
        ratios = [now.throughput / then.throughput for then, now in pairs]
        then, now = zip(*pairs, strict=True)
        cpu = [1000 * statistics.mean(each.cpu for each in turns) for turns in (then, now)]
        latency = [
            1000 * statistics.median(each.latency for each in turns) for turns in (then, now)
        ]
        print(
            f"| {name} | {statistics.mean(each.throughput for each in then):,.0f} "
            f"| {statistics.mean(ratios):.3f} ({statistics.stdev(ratios) / rounds**0.5:.3f}) "
            f"| {cpu[0]:.2f} -> {cpu[1]:.2f} | {latency[0]:.2f} -> {latency[1]:.2f} |",
            flush=True,
        )


def starts(trees: list[pathlib.Path], rounds: int, environment: dict[str, str]) -> None:
    print("| | seconds until ready, median | CPU seconds until then |")
    print("|---|---|---|")
    seconds: dict[pathlib.Path, list[float]] = {tree: [] for tree in trees}
    cpu: dict[pathlib.Path, list[float]] = {tree: [] for tree in trees}
    for _ in range(rounds):
        for number, tree in enumerate(trees):
            began = time.monotonic()
            with serving(tree, 18_100 + number, environment) as server:
                seconds[tree].append(time.monotonic() - began)
                cpu[tree].append(server.cpu_seconds())
    for name, tree in zip(("before", "after"), trees, strict=True):
        medians = statistics.median(seconds[tree]), statistics.median(cpu[tree])
        print(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} |")


def _family(pid: int) -> Iterator[int]:
    yield pid
    for tasks in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in tasks.joinpath("children").read_text().split():
            yield from _family(int(child))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_trees",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=pathlib.Path, help="a checkout")
    parser.add_argument("after", type=pathlib.Path, help="another")
    parser.add_argument("--rounds", type=int, default=16, help="at least 2 (%(default)s)")
    parser.add_argument("--load", action="append", choices=LOADS, help="(all)")
    parser.add_argument("--precision", default="fp32", help="(%(default)s)")
    parser.add_argument("--start", action="store_true", help="measure the start instead")
    options = parser.parse_args()
    environment = {"SHOAL_PRECISION": options.precision}
    trees = [options.before, options.after]
    try:
        if options.start:
            starts(trees, options.rounds, environment)
            return 0
        with (
            serving(trees[0], 18_100, environment) as before,
            serving(trees[1], 18_101, environment) as after,
        ):
            compare(before, after, options.rounds, options.load or list(LOADS))
    except RuntimeError as trouble:
        print(trouble, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
