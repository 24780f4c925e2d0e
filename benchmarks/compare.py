"""How does Shoal compare with what one would use instead? Same network, same weights, same load.

    make bench                    (rivals take part once `make bench-rivals` has set them up)
    python -m benchmarks.compare --minutes 2

Contestants take turns, each a fresh process, in rounds until the time is used up; what counts is
the median of the rounds. Servers and load generator share the machine. The network computes in fp32
on one OpenMP thread a process. Writes bench.json, bench.md and bench.png.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import signal
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator

import uvloop

from benchmarks import outcome
from benchmarks.contestants import (
    CONTESTANTS,
    MOSEC,
    TUTORIAL,
    UNBATCHED,
    Contestant,
    Server,
    serving,
    wait_for_port,
)
from benchmarks.outcome import Figures
from benchmarks.stopping import lost_on_stop
from shoal.load import fleet, images
from shoal.load.generator import Generator, Job
from shoal.load.load_test import Trouble, ask
from shoal.load.report import Run, summarise

RESULTS = pathlib.Path(__file__).parent / "results"
SLO = 0.1
CONNECTIONS = (64, 32, 16, 4, 2, 1)
"""Tried in turn, until the 99th percentile is within the SLO."""
START_UP = 60.0
WARM_UP = 0.3
PATIENCE = 20.0
CROWD = 1000
TERMINATED = 128 + signal.SIGTERM

SMALL = images.made_up(32)
VGA = images.made_up(640, 8, 480)
LARGE = images.made_up(4000, 2, 3000)
Pictures = list[images.Picture]


class Entrance:
    """One way into a running server: with the image as the body, or in a form."""

    def __init__(self, server: Server, raw: bool) -> None:
        self.server = server
        self._raw = raw
        self._classes: list[str | None] = []

    def wait(self) -> None:
        """Until it answers. Raises RuntimeError if it does not, within `START_UP` seconds."""
        end = time.monotonic() + START_UP
        status, body = 0, b""
        while time.monotonic() < end and wait_for_port(self.server, end - time.monotonic()):
            with contextlib.suppress(Trouble):
                status, body = ask(self._url, self.requests(SMALL)[0])
            if status == 200:
                self._classes = [
                    images.class_of(ask(self._url, r)[1]) for r in self.requests(SMALL)
                ]
                return
            time.sleep(0.1)
        raise RuntimeError(f"no answer to an image: {status} {body[:300]!r}")

    @property
    def classes(self) -> list[str | None]:
        """What the small pictures show, as answered before the load."""
        return self._classes

    def requests(self, pictures: Pictures) -> list[bytes]:
        return [images.request(self._url, picture, self._raw) for picture in pictures]

    def closed(self, pictures: Pictures, connections: int, seconds: float) -> Run:
        return self._run(pictures, seconds, None, connections)

    def open(self, rate: float, seconds: float) -> Run:
        return self._run(SMALL, seconds, rate, 0)

    @property
    def _url(self) -> urllib.parse.SplitResult:
        return urllib.parse.urlsplit(self.server.url)

    def _run(self, pictures: Pictures, seconds: float, rate: float | None, connections: int) -> Run:
        # Of a crowd, and of pictures that take long, hardly any second one begins in that time.
        warm_up = WARM_UP if pictures is not LARGE and connections < CROWD else 0.0
        end = warm_up + seconds
        job = Job(
            url=self.server.url,
            requests=self.requests(pictures),
            expected=self._classes if pictures is SMALL else [None] * len(pictures),
            duration=end,
            timeout=PATIENCE,
            seed=1,
            times=None if rate is None else fleet.poisson(rate, end, 1),
            concurrency=connections,
        )
        load = f"{connections} connections" if rate is None else f"{rate:.0f}/s"
        found = uvloop.run(Generator(job, lambda answered, failed: None).run())
        return summarise(load, rate, [found], warm_up, end)


def measure(
    entrance: Entrance, contestant: Contestant, maxima: dict[str, float], seconds: float
) -> Figures:
    """All figures of one contestant in one round but what a stop costs."""
    figures = Figures(classes=entrance.classes)
    for connections in CONNECTIONS:
        cpu = entrance.server.cpu_seconds()
        run = entrance.closed(SMALL, connections, seconds)
        cpu = entrance.server.cpu_seconds() - cpu
        if run.latency_of_all["p99"] <= SLO or connections == CONNECTIONS[-1]:
            break
    figures.connections = connections
    figures.throughput = run.achieved
    figures.cpu = cpu / max(run.achieved * (WARM_UP + seconds), 1)
    figures.generator_cpu = max(run.generator_cpu)
    figures.different = run.different
    figures.lone = entrance.closed(SMALL, 1, seconds / 2).latency["p50"]
    figures.large = entrance.closed(LARGE, 8, 2 * seconds).achieved
    if contestant.name == TUTORIAL:
        return figures  # what follows is beyond it
    figures.vga = entrance.closed(VGA, 32, seconds).achieved
    for name in (UNBATCHED, MOSEC):
        if name == contestant.name:
            maxima.setdefault(name, run.achieved)
        if name in maxima:
            half = entrance.open(maxima[name] / 2, seconds)
            figures.half[name] = (half.latency_of_all["p50"], half.latency_of_all["p99"])
    crowd = entrance.closed(SMALL, CROWD, 1.5 * seconds)
    figures.crowd = crowd.latency_of_all["p99"]
    figures.crowd_lost = sum(n for status, n in crowd.statuses.items() if status != "200")
    return figures


def rounds(options: argparse.Namespace) -> Iterator[dict[str, Figures]]:
    """Figures by contestant, round after round, as long as there is time for another one."""
    known = [c for c in CONTESTANTS if not options.only or c.name in options.only]
    taking_part = [c for c in known if c.set_up]
    for absent in [c for c in known if not c.set_up]:
        print(f"{absent.name} is not set up: make bench-rivals", file=sys.stderr)
    end = time.monotonic() + 60 * options.minutes
    longest = 0.0
    maxima: dict[str, float] = {}
    while time.monotonic() + longest < end:
        began = time.monotonic()
        found: dict[str, Figures] = {}
        for contestant in taking_part:
            found |= turn(contestant, maxima, options.seconds)
        longest = max(longest, time.monotonic() - began)
        yield found


def turn(contestant: Contestant, maxima: dict[str, float], seconds: float) -> dict[str, Figures]:
    """One contestant's figures, by entrance; none where it fails, which is said."""
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        try:
            with serving(contestant, log) as server:
                for raw in contestant.raw:
                    name = contestant.name
                    if len(contestant.raw) > 1:
                        name += ", raw body" if raw else ", form"
                    entrance = Entrance(server, raw)
                    entrance.wait()
                    found[name] = figures = measure(entrance, contestant, maxima, seconds)
                    print(f"{name:22} {outcome.line(figures)}", flush=True)
                pictures = SMALL if contestant.name == TUTORIAL else VGA
                figures.lost = uvloop.run(lost_on_stop(server, entrance.requests(pictures)))
        except RuntimeError as trouble:
            print(f"{contestant.name}: {trouble}", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):
                print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
    return found


def leave(*_: object) -> None:
    """SIGTERM: leave so that no server is left behind. In a loop an exception would go astray."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        sys.exit(TERMINATED)
    for task in asyncio.all_tasks(loop):
        task.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=6.5, help="that all rounds may take (%(default)s)")
    add("--seconds", type=float, default=1.2, help="of each measurement (%(default)s)")
    add("--only", nargs="*", choices=[c.name for c in CONTESTANTS], help="contestants")
    add("--out", type=pathlib.Path, default=RESULTS, metavar="DIR", help="(%(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, leave)
    found: list[dict[str, Figures]] = []
    try:
        for figures in rounds(options):
            found.append(figures)
            print(f"--- round {len(found)} done ---", flush=True)
    except KeyboardInterrupt:
        print("stopped; whole rounds are kept", file=sys.stderr)
    except asyncio.CancelledError:
        return TERMINATED
    if not found or not any(found):
        return 1
    versions = [c.version() for c in CONTESTANTS if c.set_up and c.package]
    report = outcome.Report(outcome.medians(found), len(found), outcome.machine(), versions)
    print(report.table())
    for verdict in report.verdicts():
        print(verdict)
    report.write(options.out / "bench")
    return 0


if __name__ == "__main__":
    sys.exit(main())
