"""Reports the results of `benchmarks.compare`: a table, a JSON file, a plot and the targets."""

from __future__ import annotations

import json
import math
import os
import pathlib
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.competitors import INT8, MOSEC, SHOAL, TUTORIAL, UNBATCHED

RAW, FORM = f"{SHOAL}, raw body", f"{SHOAL}, form"


@dataclass
class Figures:
    """Results of one server: either of one round, or medians of several rounds.

    Rates are in requests per second, and times are in seconds. If a figure was not measured, the
    field is None.
    """

    classes: list[str | None] = field(repr=False)
    """Class that the server returns for each small image when no other requests are in flight."""
    throughput: float | None = None
    """Rate at which the server classifies small images."""
    connections: float | None = None
    """Number of connections at which `throughput` was measured. This is the largest tested number
    at which the 99th percentile of the latency is at most 100 ms."""
    cpu: float | None = None
    """CPU seconds of all processes of the server per request."""
    lone: float | None = None
    """Median latency with one request at a time."""
    vga: float | None = None
    """Rate at which the server classifies images of 640 x 480 pixels."""
    large: float | None = None
    """Rate at which the server classifies images of 12 megapixels."""
    half: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Latency of this server, by the name of another server: the 50th and the 99th percentile, when
    requests are sent at half the throughput of the other server."""
    crowd: float | None = None
    """99th percentile of the latency with 1,000 connections."""
    crowd_lost: float | None = None
    """Number of requests without a response of status 200, with 1,000 connections."""
    lost: float | None = None
    """Number of requests without a response of status 200, if the server receives SIGTERM while 32
    requests are in flight."""
    different: float | None = None
    """Number of responses under load with another class than in `classes`."""
    generator_cpu: float | None = None
    """CPU time of the load generator per second, as a share of one core."""


def medians(rounds: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    """Returns the median results of each server, in the order in which the servers first appear.

    For the numbers of lost requests and of different classes, the maximum replaces the median.
    """
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {
        name: _median([figures[name] for figures in rounds if name in figures]) for name in names
    }


def _median(rounds: Sequence[Figures]) -> Figures:
    median = Figures(rounds[0].classes)
    for name in asdict(median):
        values = [value for one in rounds if (value := getattr(one, name)) is not None]
        if name == "half":
            for other in dict.fromkeys(key for one in values for key in one):
                pairs = [one[other] for one in values if other in one]
                p50, p99 = (statistics.median(column) for column in zip(*pairs, strict=True))
                median.half[other] = p50, p99
        elif name != "classes" and values:
            is_loss = name in ("lost", "crowd_lost", "different")
            setattr(median, name, max(values) if is_loss else statistics.median(values))
    return median


def line(figures: Figures) -> str:
    """Returns the results of one server in one line."""
    return "  ".join(
        f"{title} {cell}" for title, cell in zip(_TITLES, _cells(figures), strict=True)
    )


@dataclass(frozen=True)
class Report:
    """The results of a comparison."""

    figures: dict[str, Figures]
    """Medians of the rounds, by the name of the server and the kind of upload."""
    rounds: int
    """Number of rounds."""
    machine: str
    """Description of the machine."""
    versions: list[str]
    """Name and version of each server's Python package."""

    def table(self) -> str:
        """Returns the results as a Markdown table."""
        rows = [["", *_TITLES], ["---"] * (1 + len(_TITLES))]
        rows += [[name, *_cells(figures)] for name, figures in self.figures.items()]
        note = (
            f"{self.machine}; {', '.join(self.versions)}. All figures are medians; number of "
            f"rounds: {self.rounds}. Throughput is measured with at most 64 connections. If more "
            "than 1 % of the responses took over 100 ms, fewer connections were used, and their "
            "number is in brackets. The load generator runs on the same cores."
        )
        return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", note])

    def verdicts(self) -> Iterator[str]:
        """Yields a line for each target: whether the target is reached, and the measured ratio."""
        ours, form = self.figures.get(RAW), self.figures.get(FORM)
        if ours is None or form is None:
            return
        for name, other in self.figures.items():
            if name.startswith(SHOAL):
                continue
            own = ours if name == MOSEC else form
            goal = {MOSEC: 1.0, TUTORIAL: 60.0}.get(name, 2.0)
            yield _at_least(f"throughput against {name}", own.throughput, other.throughput, goal)
            yield _at_least(f"12 megapixels against {name}", own.large, other.large, 4.0)
            if name == MOSEC:
                if (int8 := self.figures.get(f"{INT8}, raw body")) is not None:
                    yield _at_least("int8 against Mosec", int8.throughput, other.throughput, 1.6)
                yield _at_least("CPU time of Mosec against Shoal", other.cpu, own.cpu, 1.0)
                yield _at_least("p99 with 1,000 connections", other.crowd, own.crowd, 1.0)
            if name in (UNBATCHED, MOSEC) and name in other.half and name in own.half:
                pairs = zip(other.half[name], own.half[name], strict=True)
                for which, (theirs, own_latency) in zip(("p50", "p99"), pairs, strict=True):
                    title = f"{which} at half of {name}'s maximum"
                    yield _at_least(title, theirs, own_latency, 1.0)
            if name == UNBATCHED and other.lone is not None and form.lone is not None:
                extra = 1e3 * (form.lone - other.lone)
                title = f"latency of a single request, compared with {name}"
                yield f"{_mark(extra <= 0.3)} {title}: {extra:+.2f} ms (at most +0.3 ms)"
        for name, figures in self.figures.items():
            if not name.startswith(SHOAL):
                continue
            same = sum(a == b for a, b in zip(figures.classes, ours.classes, strict=True))
            if same < len(ours.classes):
                differing = len(ours.classes) - same
                yield f"     {name}: number of images with another class than in fp32: {differing}"
            lost = (figures.lost or 0) + (figures.crowd_lost or 0) + (figures.different or 0)
            yield f"{_mark(lost == 0)} {name}: lost, rejected or wrong responses: {lost:.0f}"

    def write(self, path: pathlib.Path) -> None:
        """Writes the report to three files: `path` with the suffixes .json, .md and .png."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "versions": self.versions,
            "rounds": self.rounds,
            "targets": list(self.verdicts()),
            "contestants": {name: _plain(asdict(f)) for name, f in self.figures.items()},
        }
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        path.with_suffix(".json").write_text(text)
        path.with_suffix(".md").write_text(self.table() + "\n")
        self._plot(path.with_suffix(".png"))

    def _plot(self, path: pathlib.Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.6), layout="constrained")
        names = list(self.figures)[::-1]
        colors = ["#c2562d" if name.startswith(SHOAL) else "#8a97a3" for name in names]
        panels = (
            ("requests/s, small images", [self.figures[n].throughput or 0 for n in names]),
            ("CPU, ms per request", [1e3 * (self.figures[n].cpu or 0) for n in names]),
            ("requests/s, 12 megapixels", [self.figures[n].large or 0 for n in names]),
        )
        for axes, (title, values) in zip(
            figure.subplots(1, len(panels), sharey=True), panels, strict=True
        ):
            bars = axes.barh(names, values, color=colors)
            axes.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8)
            axes.set_title(title, fontsize=10)
            axes.margins(x=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def machine() -> str:
    """Returns the number of usable cores, the processor and the version of Python."""
    model = platform.machine()
    for row in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            model = row.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, Python {platform.python_version()}"


_TITLES = (
    "requests/s",
    "CPU per request, ms",
    "latency of a single request, ms",
    "requests/s of 640 x 480 pixels",
    "requests/s of 12 megapixels",
    "p50 / p99 at half of FastAPI's requests/s, ms",
    "p50 / p99 at half of Mosec's requests/s, ms",
    "p99 with 1,000 connections, ms",
    "requests lost with 1,000 connections",
    "requests lost on SIGTERM",
)


def _cells(figures: Figures) -> list[str]:
    throughput = _short(figures.throughput)
    if figures.connections not in (None, 64):
        throughput += f" ({figures.connections:.0f})"
    halves = [
        " / ".join(_ms(seconds) for seconds in figures.half[name]) if name in figures.half else "-"
        for name in (UNBATCHED, MOSEC)
    ]
    return [
        throughput,
        _ms(figures.cpu, 2),
        _ms(figures.lone),
        _short(figures.vga),
        _short(figures.large),
        *halves,
        "-" if figures.crowd is None else _ms(figures.crowd, 0),
        _short(figures.crowd_lost),
        _short(figures.lost),
    ]


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _ms(seconds: float | None, digits: int = 1) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:,.{digits}f}" if math.isfinite(seconds) else "never"


def _at_least(title: str, larger: float | None, smaller: float | None, goal: float) -> str:
    """Returns a line for the target that `larger` is at least `goal` times `smaller`."""
    if larger is None or not smaller:
        return f"  ?  {title}: not measured"
    if math.isinf(smaller):
        return f"{_mark(False)} {title}: Shoal did not respond"
    return (
        f"{_mark(larger >= goal * smaller)} {title}: {larger / smaller:.2f}x (at least {goal:g}x)"
    )


def _mark(reached: bool) -> str:
    return "yes:" if reached else " NO:"


def _plain(value: Any) -> Any:
    """Replaces infinite numbers by None, because JSON cannot store infinite numbers."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
