"""The targets, and where they are missed."""

from __future__ import annotations

from typing import Any

GOODPUT = 0.95
KEPT = 0.99
SURVIVES = 0.99
"""A policy survives a load if this share of all requests is answered within the SLO."""
TIE = 1.02
"""Latencies of two policies that differ by less are the same: the device's noise is 5 %."""
BEATEN = 1.01


def verdict(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Per target: how many cells meet it, and the ones that do not."""
    goodput, kept, beaten, slower = [], [], [], []
    compared = 0
    for cell in results:
        ours = cell["rows"]["shoal"]
        name = f"{cell['device']}, {cell['slo']} x T(1), {cell['trace']}, load {cell['load']:g}"
        if ours["of_bound"] < GOODPUT:
            miss = f"{name}: {ours['of_bound']:.1%} of the bound"
            if best := cell.get("clairvoyant"):
                miss += f"; knowing all in advance {best['share']:.1%} could be answered in time, "
                miss += f"of which we answer {best['shoal']:.1%}"
            goodput.append(miss)
        calm = ours.get("kept_share_but_for_the_change", ours["kept_share"])
        if ours["kept_share"] < KEPT:
            kept.append(
                f"{name}: {ours['kept_share']:.1%}; {calm:.1%} but for four SLOs around the change"
            )
        for peer, row in cell["rows"].items():
            if peer == "shoal":
                continue
            if row["goodput"] > BEATEN * ours["goodput"]:
                ratio = row["goodput"] / ours["goodput"]
                beaten.append(
                    f"{name}: {peer} has {ratio:.1%} of our goodput, and answers "
                    f"{row['kept_share']:.1%} of what it accepts in time"
                )
            if row["accepted_share"] * row["kept_share"] < SURVIVES:
                continue
            for figure in ("p50", "p99"):
                compared += 1
                if not ours[figure] <= TIE * row[figure]:
                    ratio = ours[figure] / row[figure]
                    slower.append(f"{name}: our {figure} is {ratio:.1%} of {peer}'s")
    targets = {
        f"goodput at least {GOODPUT:.0%} of the bound": (len(results), goodput),
        f"at least {KEPT:.0%} of the accepted in time": (len(results), kept),
        "no peer more than 1 % ahead in goodput": (len(results), beaten),
        "p50 and p99 no worse than a peer's that survives": (compared, slower),
    }
    lines = []
    for target, (total, missed) in targets.items():
        lines.append(f"{target}: {total - len(missed)} of {total}")
        lines += [f"  missed: {miss}" for miss in missed]
    return {"lines": lines, "targets": {t: {"of": n, "missed": m} for t, (n, m) in targets.items()}}
