"""The targets: where they are met, where who knows more misses them, too, and where we alone do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GOODPUT = 0.95
KEPT = 0.99
SURVIVES = 0.99
"""A policy survives a load if this share of all requests is answered within the SLO."""
TIE = 1.02
"""Latencies of two policies that differ by less are the same: the device's noise is 5 %."""
BEATEN = 1.01
WHO_KNOWS_MORE = {
    "clairvoyant": "the clairvoyant",
    "unforeseen": "the unforeseen",
    "told": "who is told of the change",
    "hindsight": "the best setting in hindsight",
}


@dataclass
class Target:
    """Cells, or comparisons, that should meet something, and the ones that do not."""

    name: str
    of: int = 0
    explained: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def judge(self, miss: str | None, explained: str | None = None) -> None:
        """`miss` says what is missing, if anything; `explained` who knows more and misses it."""
        self.of += 1
        if miss and explained:
            self.explained.append(f"{miss}; {explained}")
        elif miss:
            self.missed.append(miss)

    @property
    def met(self) -> int:
        return self.of - len(self.explained) - len(self.missed)

    def lines(self) -> list[str]:
        counts = f"explained in {len(self.explained)}, missed in {len(self.missed)}"
        return [
            f"{self.name}: met in {self.met} of {self.of}, {counts}",
            *(f"  explained: {line}" for line in self.explained),
            *(f"  missed: {line}" for line in self.missed),
        ]


def verdict(results: list[dict[str, Any]]) -> list[Target]:
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
                miss = f"{name}: our {figure} is {ratio:.1%} of {peer}'s"
                slower.judge(None if ratio <= TIE else miss)
    return [goodput, kept, beaten, slower]


def _goodput(
    name: str, cell: dict[str, Any], ours: dict[str, Any]
) -> tuple[str | None, str | None]:
    if ours["of_bound"] >= GOODPUT:
        return None, None
    miss = f"{name}: {ours['of_bound']:.1%} of the bound"
    return _judged(miss, cell, ours, "of_bound", GOODPUT, "reaches", *WHO_KNOWS_MORE)


def _beaten(
    name: str, ours: dict[str, Any], peers: dict[str, dict[str, Any]]
) -> tuple[str | None, str | None]:
    """By one who keeps its promises, if there is one."""
    ahead = {p: row for p, row in peers.items() if row["goodput"] > BEATEN * ours["goodput"]}
    if not ahead:
        return None, None
    fair = min(KEPT, ours["kept_share"])
    peer = max(ahead, key=lambda p: (ahead[p]["kept_share"] >= fair, ahead[p]["goodput"]))
    its = ahead[peer]
    miss = f"{name}: {peer} has {its['goodput'] / ours['goodput']:.1%} of our goodput"
    keeps = f"it keeps {its['kept_share']:.1%} of its promises, we {ours['kept_share']:.1%}"
    return (miss, keeps) if its["kept_share"] < fair else (f"{miss}; {keeps}", None)


def _kept(name: str, cell: dict[str, Any], ours: dict[str, Any]) -> tuple[str | None, str | None]:
    if ours["kept_share"] >= KEPT:
        return None, None
    miss = f"{name}: {ours['kept_share']:.1%}"
    if "kept_share_but_for_the_change" in ours:
        calm = ours["kept_share_but_for_the_change"]
        miss += f", {calm:.1%} but for four SLOs around the change"
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
    """The miss, and who knows more and does not reach the goal; who does is told with the miss."""
    explained = None
    for key in references:
        if found := cell.get(key):
            most = f"{WHO_KNOWS_MORE[key]} {does} {found[figure]:.1%}"
            # One that does worse than ours does not know more.
            if ours[figure] <= found[figure] < goal:
                explained = most
            else:
                miss += f"; {most}"
    return miss, explained
