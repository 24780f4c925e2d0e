"""Results of a load test as numbers, as a table and as a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.load.connection import FAILED, TIMED_OUT
from shoal.load.generator import Samples

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
BUSY = 0.9
"""Share of one core. A generator that uses more CPU time may distort the results."""
LAG = 0.002
"""99th percentile of the delay of requests, in seconds. Generators that delay requests longer may
distort the results."""
BINS = 80
"""Number of bars in the plot of the distribution of latencies."""


@dataclass(frozen=True)
class Run:
    """Results under one load. Rates are requests per second, times are seconds."""

    load: str
    """Name of the load in the table."""
    offered: float
    """Planned rate of requests (open loop), or rate of sent requests (closed loop)."""
    achieved: float
    """Rate of responses with status 200 during the run."""
    latency: dict[str, float]
    """Percentiles of the latency of responses with status 200. Infinite: no such response
    arrived."""
    latency_of_all: dict[str, float]
    """Percentiles of the latency of all requests. A request without a response of status 200 has
    infinite latency."""
    statuses: dict[str, int]
    """Number of requests by HTTP status, `failed` or `timed out`."""
    different: int
    """Number of responses with a class that differs from the image's class before the load."""
    bytes_sent: int
    """Total size of all requests in bytes."""
    bytes_received: int
    """Total size of the bodies of all responses in bytes."""
    generator_cpu: list[float]
    """CPU time of each generator process, as a share of one core."""
    generator_lag: float
    """99th percentile of the time by which the generators themselves delayed requests."""
    latencies: list[float] = field(repr=False)
    """Latency of each response with status 200, in seconds."""

    @property
    def limited_by_generator(self) -> bool:
        """Whether a busy or late load generator may have distorted the results."""
        return max(self.generator_cpu) > BUSY or self.generator_lag > LAG

    def to_dict(self) -> dict[str, Any]:
        """Returns the results for JSON, which has no infinity: infinite values become None."""
        fields = asdict(self)
        del fields["latencies"]
        for name in ("latency", "latency_of_all"):
            fields[name] = {k: v if math.isfinite(v) else None for k, v in fields[name].items()}
        return fields | {"limited_by_generator": self.limited_by_generator}


def summarize(
    load: str, rate: float | None, samples: Sequence[Samples], begin: float, end: float
) -> Run:
    """Computes the results of a load from the samples of all generators.

    Args:
        load: Name of the load in the table.
        rate: Requests per second of an open loop. None: the load was a closed loop.
        samples: Measurements of each generator.
        begin: Seconds since the start. Requests with an earlier planned time are not counted.
        end: Seconds since the start. Requests with a later planned time are not counted.
    """
    requests = [
        request
        for one in samples
        for request in zip(one.intended, one.latency, one.status, strict=True)
    ]
    counted = [request for request in requests if begin <= request[0] < end]
    good = [latency for _, latency, status in counted if status == 200]
    failed = len(counted) - len(good)
    achieved = sum(
        status == 200 and begin <= intended + latency < end
        for intended, latency, status in requests
    )
    statuses = Counter(status for _, _, status in counted)
    lags = sorted(lag for one in samples for lag in one.send_lag)
    return Run(
        load=load,
        offered=rate if rate is not None else len(counted) / (end - begin),
        achieved=achieved / (end - begin),
        latency=_percentiles(good),
        latency_of_all=_percentiles(good + [math.inf] * failed),
        statuses={_status_name(status): n for status, n in sorted(statuses.items())},
        different=sum(one.different for one in samples),
        bytes_sent=sum(one.bytes_sent for one in samples),
        bytes_received=sum(one.bytes_received for one in samples),
        generator_cpu=[round(one.cpu_share, 3) for one in samples],
        generator_lag=_percentile(lags, 99) if lags else 0.0,
        latencies=good,
    )


def table(runs: Sequence[Run]) -> str:
    """Returns a table: a header and one line for each run."""
    lines = [
        f"{'load':>22} {'offered/s':>10} {'answered/s':>10} " + _row(PERCENTILES) + "  statuses"
    ]
    for run in runs:
        times = _row([_ms(run.latency[name]) for name in PERCENTILES])
        statuses = ", ".join(f"{n} x {status}" for status, n in run.statuses.items())
        line = f"{run.load:>22} {run.offered:10,.0f} {run.achieved:10,.0f} {times}  {statuses}"
        if run.different:
            line += f"; {run.different} RESPONSES WITH ANOTHER CLASS THAN BEFORE THE LOAD"
        if run.limited_by_generator:
            line += "  (the load generator was late or busy and may have distorted these results)"
        lines.append(line)
    return "\n".join(lines)


def plot(runs: Sequence[Run], slo: float | None, path: Path) -> None:
    """Draws latency against load, and the distribution of latencies in the last run, as a PNG.

    Args:
        runs: Results of at least one run.
        slo: Latency to mark, in seconds. None: no latency is marked.
        path: Path of the PNG file to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
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
    if last.latencies:
        low, high = min(last.latencies), max(last.latencies)
        step = max(high / low, 1.01) ** (1 / BINS)
        bins = [1e3 * low * step**number for number in range(BINS + 1)]
        spread.hist([1e3 * latency for latency in last.latencies], bins=bins)
    spread.set(title=f"Latency at {last.load}", xlabel="ms", ylabel="responses", xscale="log")
    for axes in (curve, spread):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns the percentiles of latencies. All are infinite if there are no latencies."""
    if not seconds:
        return dict.fromkeys(PERCENTILES, math.inf)
    ordered = sorted(seconds)
    return {name: _percentile(ordered, percent) for name, percent in PERCENTILES.items()}


def _percentile(ordered: Sequence[float], percent: float) -> float:
    """Returns a percentile without interpolation, because some latencies are infinite.

    Args:
        ordered: Numbers in ascending order, at least one.
        percent: The percentile, from 0 to 100.
    """
    return ordered[math.ceil(percent / 100 * (len(ordered) - 1))]


def _status_name(status: int) -> str:
    return {FAILED: "failed", TIMED_OUT: "timed out"}.get(status, str(status))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if math.isfinite(seconds) else "-"


def _row(cells: Any) -> str:
    return " ".join(f"{cell:>8}" for cell in cells)
