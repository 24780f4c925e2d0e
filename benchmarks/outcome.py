"""What a comparison found: figures by contestant, as a table, as targets kept or missed, as JSON,
as a picture."""

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

from benchmarks.contestants import INT8, MOSEC, SHOAL, TUTORIAL, UNBATCHED

RAW, FORM = f"{SHOAL}, raw body", f"{SHOAL}, form"


@dataclass
class Figures:
    """Of one contestant in one round, or the medians of several. Rates are requests a second, times
    are seconds; None: not measured."""

    classes: list[str | None] = field(repr=False)
    """What it says the small pictures show."""
    throughput: float | None = None
    """Small pictures, with the 99th percentile within 100 ms."""
    connections: float | None = None
    """The most that kept it so."""
    cpu: float | None = None
    """Seconds a request, of the server and all its processes."""
    lone: float | None = None
    """Median latency of one request at a time."""
    vga: float | None = None
    large: float | None = None
    """Throughput of pictures of 12 megapixels."""
    half: dict[str, tuple[float, float]] = field(default_factory=dict)
    """50th and 99th percentile at half the maximum of each of two contestants."""
    crowd: float | None = None
    """99th percentile with 1,000 connections."""
    crowd_lost: float | None = None
    """Of those, not answered with 200."""
    lost: float | None = None
    """Of 32 requests in flight, when told to stop."""
    different: float | None = None
    """Answers of another class under load than before it."""
    generator_cpu: float | None = None
    """Share of a core that the load took."""


def medians(rounds: Sequence[dict[str, Figures]]) -> dict[str, Figures]:
    """By contestant, in the order in which they first appear; what was lost is the worst."""
    names = dict.fromkeys(name for found in rounds for name in found)
    return {name: _middle([found[name] for found in rounds if name in found]) for name in names}


def _middle(several: Sequence[Figures]) -> Figures:
    middle = Figures(several[0].classes)
    for name in asdict(middle):
        known = [value for one in several if (value := getattr(one, name)) is not None]
        if name == "half":
            for other in dict.fromkeys(key for one in known for key in one):
                pairs = [one[other] for one in known if other in one]
                p50, p99 = (statistics.median(column) for column in zip(*pairs, strict=True))
                middle.half[other] = p50, p99
        elif name != "classes" and known:
            worst = name in ("lost", "crowd_lost", "different")
            setattr(middle, name, max(known) if worst else statistics.median(known))
    return middle


def line(figures: Figures) -> str:
    """What was found, while it goes on."""
    return "  ".join(
        f"{title} {cell}" for title, cell in zip(_TITLES, _cells(figures), strict=True)
    )


@dataclass(frozen=True)
class Report:
    """All of it."""

    found: dict[str, Figures]
    rounds: int
    machine: str
    versions: list[str]

    def table(self) -> str:
        """In Markdown."""
        rows = [["", *_TITLES], ["---"] * (1 + len(_TITLES))]
        rows += [[name, *_cells(figures)] for name, figures in self.found.items()]
        note = (
            f"{self.machine}; {', '.join(self.versions)}. Medians of rounds: {self.rounds}. "
            "Throughput is the most with 99 % within 100 ms, 64 connections unless noted (in "
            "brackets); the load generator runs on the same cores."
        )
        return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", note])

    def verdicts(self) -> Iterator[str]:
        """A line for each target: reached or not, and by how much."""
        ours, form = self.found.get(RAW), self.found.get(FORM)
        if ours is None or form is None:
            return
        for name, other in self.found.items():
            if name.startswith(SHOAL):
                continue
            mine = ours if name == MOSEC else form
            goal = {MOSEC: 1.0, TUTORIAL: 60.0}.get(name, 2.0)
            yield _at_least(f"throughput against {name}", mine.throughput, other.throughput, goal)
            yield _at_least(f"12 megapixels against {name}", mine.large, other.large, 4.0)
            if name == MOSEC:
                if (int8 := self.found.get(f"{INT8}, raw body")) is not None:
                    yield _at_least("int8 against Mosec", int8.throughput, other.throughput, 1.6)
                yield _at_least("CPU of Mosec against ours", other.cpu, mine.cpu, 1.0)
                yield _at_least("p99 with 1,000 connections", other.crowd, mine.crowd, 1.0)
            if name in (UNBATCHED, MOSEC) and name in other.half and name in mine.half:
                for which, (its, own) in zip(
                    ("p50", "p99"), zip(other.half[name], mine.half[name], strict=True), strict=True
                ):
                    yield _at_least(f"{which} at half of {name}'s maximum", its, own, 1.0)
            if name == UNBATCHED and other.lone is not None and form.lone is not None:
                more = 1e3 * (form.lone - other.lone)
                yield f"{_mark(more <= 0.3)} a lone request: {more:+.2f} ms (at most +0.3)"
        for name, figures in self.found.items():
            if not name.startswith(SHOAL):
                continue
            same = sum(a == b for a, b in zip(figures.classes, ours.classes, strict=True))
            if same < len(ours.classes):
                yield f"     {name}: another class than in fp32 for {len(ours.classes) - same}"
            lost = (figures.lost or 0) + (figures.crowd_lost or 0) + (figures.different or 0)
            yield f"{_mark(lost == 0)} {name}: {lost:.0f} requests lost, refused or mixed up"

    def write(self, path: pathlib.Path) -> None:
        """`path` with .json, .md and .png behind it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "versions": self.versions,
            "rounds": self.rounds,
            "targets": list(self.verdicts()),
            "contestants": {name: _plain(asdict(f)) for name, f in self.found.items()},
        }
        text = json.dumps(data, indent=1, allow_nan=False) + "\n"
        path.with_suffix(".json").write_text(text)
        path.with_suffix(".md").write_text(self.table() + "\n")
        self._plot(path.with_suffix(".png"))

    def _plot(self, path: pathlib.Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.6), layout="constrained")
        names = list(self.found)[::-1]
        colours = ["#c2562d" if name.startswith(SHOAL) else "#8a97a3" for name in names]
        panels = (
            ("requests/s, small pictures", [self.found[n].throughput or 0 for n in names]),
            ("CPU, ms a request", [1e3 * (self.found[n].cpu or 0) for n in names]),
            ("requests/s, 12 megapixels", [self.found[n].large or 0 for n in names]),
        )
        for axes, (title, values) in zip(
            figure.subplots(1, len(panels), sharey=True), panels, strict=True
        ):
            bars = axes.barh(names, values, color=colours)
            axes.bar_label(bars, [_short(value) for value in values], padding=3, fontsize=8)
            axes.set_title(title, fontsize=10)
            axes.margins(x=0.2)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def machine() -> str:
    """What it ran on."""
    model = platform.machine()
    for row in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if row.startswith("model name"):
            model = row.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, Python {platform.python_version()}"


_TITLES = (
    "requests/s",
    "CPU ms",
    "lone ms",
    "VGA/s",
    "12 MP/s",
    "p50 / p99 ms at half of FastAPI's",
    "at half of Mosec's",
    "p99 of 1,000, ms",
    "lost of them",
    "lost on SIGTERM",
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


def _at_least(what: str, more: float | None, less: float | None, goal: float) -> str:
    if more is None or not less:
        return f"  ?  {what}: not measured"
    if math.isinf(less):
        return f"{_mark(False)} {what}: ours never"
    return f"{_mark(more >= goal * less)} {what}: {more / less:.2f}x (at least {goal:g}x)"


def _mark(reached: bool) -> str:
    return "yes:" if reached else " NO:"


def _plain(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
