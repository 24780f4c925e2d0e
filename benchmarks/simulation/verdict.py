"""Verdict: which targets are met in which cells, and which misses are explained.

A reference is a policy that knows more than Shoal. It explains a miss if it does no worse and
misses the target as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GOODPUT = 0.95
KEPT = 0.99
SURVIVES = 0.99
"""A policy survives a load if it answers this share of all requests within the SLO."""
TIE = 1.02
"""Ratio up to which two latencies count as equal: the device's noise is 5 %."""
BEATEN = 1.01
"""Ratio of goodputs above which a peer is ahead."""
REFERENCES = {
    "clairvoyant": "the clairvoyant policy",
    "unforeseen": "the flow that detects the change",
    "told": "Shoal informed of the change",
    "hindsight": "the best setting in hindsight",
}


@dataclass
class Target:
    """A target, the number of comparisons, and the ones that miss it."""

    name: str
    of: int = 0
    explained: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def judge(self, miss: str | None, explained: str | None = None) -> None:
        """Count one comparison.

        Args:
            miss: What misses the target, in words. None: the target is met.
            explained: The reference that misses it as well, in words.
        """
        self.of += 1
        if miss and explained:
            self.explained.append(f"{miss}; {explained}")
        elif miss:
            self.missed.append(miss)

    @property
    def met(self) -> int:
        return self.of - len(self.explained) - len(self.missed)

    def lines(self) -> list[str]:
        """The verdict as text."""
        counts = f"explained in {len(self.explained)}, missed in {len(self.missed)}"
        return [
            f"{self.name}: met in {self.met} of {self.of}, {counts}",
            *(f"  explained: {line}" for line in self.explained),
            *(f"  missed: {line}" for line in self.missed),
        ]


def verdict(results: list[dict[str, Any]]) -> list[Target]:
    """The targets for goodput, kept share, peers' goodput and peers' latency, in this order."""
    goodput = Target(f"goodput at least {GOODPUT:.0%} of the bound")
    kept = Target(f"at least {KEPT:.0%} of the accepted in time")
    beaten = Target("no peer more than 1 % ahead in goodput")
    slower = Target("p50 and p99 no worse than a peer's that survives")
    for cell in results:
        ours = cell["rows"]["shoal"]
        name = f"{cell['device']}, {cell['slo']} x T(1), {cell['trace']}, load {cell['load']:g}"
        goodput.judge(*_goodput(name, cell, ours))
        kept.judge(*_kept(name, cell, ours))
        peers = {peer: row for peer, row in cell["rows"].items() if peer != "shoal"}
        beaten.judge(*_beaten(name, ours, peers))
        for peer, row in peers.items():
            if row["accepted_share"] * row["kept_share"] < SURVIVES:
                continue
            for figure in ("p50", "p99"):
                ratio = ours[figure] / row[figure]
                miss = f"{name}: {figure} is {ratio:.1%} of {peer}'s"
                slower.judge(None if ratio <= TIE else miss)
    return [goodput, kept, beaten, slower]


def _goodput(
    name: str, cell: dict[str, Any], ours: dict[str, Any]
) -> tuple[str | None, str | None]:
    if ours["of_bound"] >= GOODPUT:
        return None, None
    miss = f"{name}: {ours['of_bound']:.1%} of the bound"
    return _judged(miss, cell, ours, "of_bound", GOODPUT, "reaches", *REFERENCES)


def _beaten(
    name: str, ours: dict[str, Any], peers: dict[str, dict[str, Any]]
) -> tuple[str | None, str | None]:
    """Compares with the best peer that answers its accepted requests in time, if there is one."""
    ahead = {p: row for p, row in peers.items() if row["goodput"] > BEATEN * ours["goodput"]}
    if not ahead:
        return None, None
    fair = min(KEPT, ours["kept_share"])
    peer = max(ahead, key=lambda p: (ahead[p]["kept_share"] >= fair, ahead[p]["goodput"]))
    its = ahead[peer]
    miss = f"{name}: {peer} has {its['goodput'] / ours['goodput']:.1%} of Shoal's goodput"
    in_time = f"{its['kept_share']:.1%} of its accepted requests are in time"
    in_time += f", of Shoal's {ours['kept_share']:.1%}"
    return (miss, in_time) if its["kept_share"] < fair else (f"{miss}; {in_time}", None)


def _kept(name: str, cell: dict[str, Any], ours: dict[str, Any]) -> tuple[str | None, str | None]:
    if ours["kept_share"] >= KEPT:
        return None, None
    miss = f"{name}: {ours['kept_share']:.1%}"
    if "kept_share_but_for_the_change" in ours:
        calm = ours["kept_share_but_for_the_change"]
        miss += f", {calm:.1%} without four SLOs around the change"
    return _judged(miss, cell, ours, "kept_share", KEPT, "keeps", "unforeseen", "told")


def _judged(
    miss: str,
    cell: dict[str, Any],
    ours: dict[str, Any],
    figure: str,
    goal: float,
    does: str,
    *references: str,
) -> tuple[str, str | None]:
    """The miss, and the reference that explains it. References that reach the goal are added to the
    miss."""
    explained = None
    for key in references:
        if found := cell.get(key):
            reference = f"{REFERENCES[key]} {does} {found[figure]:.1%}"
            # A reference that does worse than Shoal explains nothing.
            if ours[figure] <= found[figure] < goal:
                explained = reference
            else:
                miss += f"; {reference}"
    return miss, explained
