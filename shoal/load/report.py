"""What a run is made of: figures, a table, a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.load.connection import FAILED, TIMED_OUT
from shoal.load.generator import Outcome

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
BUSY = 0.9
"""Share of a core from which on a generator may be the limit."""
LAG = 0.002
"""Seconds by which it may be late without a word, at the 99th percentile."""


@dataclass(frozen=True)
class Run:
    """One load for some seconds. Rates are requests a second, times are seconds."""

    load: str
    offered: float
    """Asked for (open loop) or sent (closed loop)."""
    achieved: float
    """Answers with 200 that came within the run."""
    latency: dict[str, float]
    """Of answers with 200, by percentile; infinite where there is none."""
    latency_of_all: dict[str, float]
    """The same where whatever is not 200 took for ever."""
    statuses: dict[str, int]
    different: int
    """Answers of another class than the same image had before the load."""
    bytes_sent: int
    bytes_received: int
    generator_cpu: list[float]
    """Share of a core, by process."""
    generator_lag: float
    """99th percentile of how late the generator itself was."""
    latencies: npt.NDArray[np.float64] = field(repr=False)

    @property
    def limited_by_generator(self) -> bool:
        """Were these figures the load generator's rather than the server's?"""
        return max(self.generator_cpu) > BUSY or self.generator_lag > LAG

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which knows no infinity: null."""
        fields = asdict(self)
        del fields["latencies"]
        for name in ("latency", "latency_of_all"):
            fields[name] = {k: v if math.isfinite(v) else None for k, v in fields[name].items()}
        return fields | {"limited_by_generator": self.limited_by_generator}


def summarise(
    load: str, rate: float | None, outcomes: Sequence[Outcome], begin: float, end: float
) -> Run:
    """Figures of what was meant to be sent from `begin` to `end`; `rate` None: a closed loop."""
    intended = np.concatenate([np.asarray(o.intended, float) for o in outcomes])
    latency = np.concatenate([np.asarray(o.latency, float) for o in outcomes])
    status = np.concatenate([np.asarray(o.status, int) for o in outcomes])
    ended = intended + latency
    counted = (intended >= begin) & (intended < end)
    good = status == 200
    of_all = np.where(good, latency, math.inf)[counted]
    lags = [lag for outcome in outcomes for lag in outcome.send_lag]
    return Run(
        load=load,
        offered=rate if rate is not None else counted.sum() / (end - begin),
        achieved=float((good & (ended >= begin) & (ended < end)).sum() / (end - begin)),
        latency=_percentiles(latency[counted & good]),
        latency_of_all=_percentiles(of_all),
        statuses={_named(s): n for s, n in sorted(Counter(status[counted].tolist()).items())},
        different=sum(outcome.different for outcome in outcomes),
        bytes_sent=sum(outcome.bytes_sent for outcome in outcomes),
        bytes_received=sum(outcome.bytes_received for outcome in outcomes),
        generator_cpu=[round(outcome.cpu_share, 3) for outcome in outcomes],
        generator_lag=float(np.percentile(lags, 99)) if lags else 0.0,
        latencies=latency[counted & good],
    )


def table(runs: Sequence[Run]) -> str:
    lines = [
        f"{'load':>22} {'offered/s':>10} {'answered/s':>10} " + _row(PERCENTILES) + "  statuses"
    ]
    for run in runs:
        times = _row([_ms(run.latency[name]) for name in PERCENTILES])
        statuses = ", ".join(f"{n} x {status}" for status, n in run.statuses.items())
        line = f"{run.load:>22} {run.offered:10,.0f} {run.achieved:10,.0f} {times}  {statuses}"
        if run.different:
            line += f"; {run.different} OF ANOTHER CLASS THAN BEFORE"
        if run.limited_by_generator:
            line += "  (the generator itself was late or busy: in part these are its own times)"
        lines.append(line)
    return "\n".join(lines)


def plot(runs: Sequence[Run], slo: float | None, path: Path) -> None:
    """Latency against load, and how the last run's latencies are spread, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curve, spread = figure.subplots(1, 2)
    ordered = sorted(runs, key=lambda run: run.offered)
    for name in ("p50", "p90", "p99"):
        curve.plot(
            [run.offered for run in ordered],
            [1e3 * run.latency[name] for run in ordered],
            marker="o",
            label=name,
        )
    if slo is not None:
        curve.axhline(1e3 * slo, color="grey", linestyle="--", label="SLO")
    curve.set(title="Latency against load", xlabel="requests/s offered", ylabel="ms", yscale="log")
    curve.legend()
    last = runs[-1]
    if len(last.latencies):
        low, high = 1e3 * last.latencies.min(), 1e3 * last.latencies.max()
        spread.hist(1e3 * last.latencies, bins=list(np.geomspace(low, max(high, low * 1.01), 80)))
    spread.set(title=f"Latency at {last.load}", xlabel="ms", ylabel="answers", xscale="log")
    for axes in (curve, spread):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _percentiles(seconds: npt.NDArray[np.float64]) -> dict[str, float]:
    """By nearest rank, so that an infinite one stays what it is and harms no other."""
    if not len(seconds):
        return dict.fromkeys(PERCENTILES, math.inf)
    found = np.percentile(seconds, list(PERCENTILES.values()), method="higher")
    return dict(zip(PERCENTILES, map(float, found), strict=True))


def _named(status: int) -> str:
    return {FAILED: "failed", TIMED_OUT: "timed out"}.get(status, str(status))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if math.isfinite(seconds) else "-"


def _row(cells: Any) -> str:
    return " ".join(f"{cell:>8}" for cell in cells)
