"""Plots the goodput and the 99th percentile of the latency by load, with a column for each device.

The goodput is the number of requests per second that are completed within the SLO. The SLO, the
service level objective, is the timeout of every request.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STYLE: dict[str, dict[str, Any]] = {
    "shoal": {"color": "#0b6e99", "linewidth": 2.6, "zorder": 5, "marker": "o", "markersize": 4},
    "no batching": {"color": "#999999"},
    "fixed window": {"color": "#d98c1f"},
    "early freeze": {"color": "#b03a5b"},
    "greedy": {"color": "#5b8c3a"},
    "linear fit": {"color": "#7a5bb0"},
}


def plot(results: list[dict[str, Any]], path: Path, slo: int = 10) -> None:
    """Plots the cells with Poisson arrivals and one SLO, and writes the plot to a PNG file.

    Args:
        results: Results of all cells, as `benchmarks.simulate.run` returns them.
        path: Path of the PNG file.
        slo: SLO of the cells, as a multiple of T(1), the mean time of a batch of one item.
    """
    shown = [cell for cell in results if cell["trace"] == "poisson" and cell["slo"] == slo]
    devices = list(dict.fromkeys(cell["device"] for cell in shown))
    figure, panels = plt.subplots(
        2, len(devices), figsize=(3.6 * len(devices), 6.4), sharex=True, sharey="row", squeeze=False
    )
    for column, device in enumerate(devices):
        cells = [cell for cell in shown if cell["device"] == device]
        loads = [cell["load"] for cell in cells]
        capacity = [cell["capacity"] / 100 for cell in cells]
        slo_seconds = [cell["slo_seconds"] / 100 for cell in cells]
        top, bottom = panels[0][column], panels[1][column]
        bound = [cell["fluid_bound"] for cell in cells]
        top.plot(loads, _ratio(bound, capacity), color="black", linestyle=":", label="bound")
        for name, style in STYLE.items():
            goodput = [cell["rows"][name]["goodput"] for cell in cells]
            p99 = [cell["rows"][name]["p99"] for cell in cells]
            top.plot(loads, _ratio(goodput, capacity), label=name, **style)
            bottom.plot(loads, _ratio(p99, slo_seconds), **style)
        top.set_title(device)
        top.set_ylim(0, 105)
        bottom.axhline(100, color="black", linestyle=":")
        bottom.set_ylim(0, 150)
        bottom.set_xscale("log")
        bottom.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        bottom.set_xlabel("offered load / capacity")
    panels[0][0].set_ylabel("goodput, % of capacity")
    panels[1][0].set_ylabel("p99 of accepted requests, % of the SLO")
    panels[0][0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"Poisson arrivals, SLO = {slo} x T(1)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ratio(values: Sequence[float], of: Sequence[float]) -> list[float]:
    return [value / whole for value, whole in zip(values, of, strict=True)]
