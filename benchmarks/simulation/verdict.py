"""Decides which cells of the simulation meet the targets, and explains the misses.

A cell is one simulation. A reference is a policy that knows more than Shoal's policy. If Shoal
misses a target in a cell, a reference may explain the miss. A reference explains the miss if its
result is not worse than Shoal's and also misses the target.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GOODPUT = 0.95
"""Target: minimum goodput as a share of the bound. The goodput is the number of requests per second
that are completed within the SLO. The SLO, the service level objective, is the timeout of every
request."""
KEPT = 0.99
"""Target: minimum share of accepted requests that are completed within the SLO."""
SURVIVES = 0.99
"""The latencies of a policy are compared only if the policy completes at least this share of all
requests within the SLO."""
TIE = 1.02
"""Maximum ratio of two latencies that count as equal. The ratio is above 1, because the device's
noise is 5 %."""
BEATEN = 1.01
"""A peer, which is the policy of another server, is ahead of Shoal if the ratio of its goodput to
Shoal's goodput exceeds this number."""
REFERENCES = {
    "clairvoyant": "the clairvoyant policy",
    "unforeseen": "the policy of the bound that detects the change",
    "told": "Shoal informed of the change",
    "hindsight": "the best setting in hindsight",
}


@dataclass
class Target:
    """A target, and the results of all comparisons with the target."""

    name: str
    """Text of the target."""
    of: int = 0
    """Number of comparisons."""
    explained: list[str] = field(default_factory=list)
    """Descriptions of the misses that are explained."""
    missed: list[str] = field(default_factory=list)
    """Descriptions of the misses that are not explained."""

    def judge(self, miss: str | None, explained: str | None = None) -> None:
        """Records one comparison.

        Args:
            miss: Text that describes the miss. None: the target is met.
            explained: Text that explains the miss. None: the miss is not explained.
        """
        self.of += 1
        if miss and explained:
            self.explained.append(f"{miss}; {explained}")
        elif miss:
            self.missed.append(miss)

    @property
    def met(self) -> int:
        """Number of comparisons that meet the target."""
        return self.of - len(self.explained) - len(self.missed)

    def lines(self) -> list[str]:
        """Returns the results as lines of text."""
        counts = f"explained in {len(self.explained)}, missed in {len(self.missed)}"
        return [
            f"{self.name}: met in {self.met} of {self.of}, {counts}",
            *(f"  explained: {line}" for line in self.explained),
            *(f"  missed: {line}" for line in self.missed),
        ]


def verdict(results: list[dict[str, Any]]) -> list[Target]:
    """Compares the results of all cells with the targets.

    Args:
        results: Results of all cells, as `benchmarks.simulate.run` returns them.

    Returns:
        Four targets, in this order: Shoal's goodput, the share of accepted requests that are
        completed in time, the goodput of peers, and the latency of peers.
    """
    goodput = Target(f"goodput at least {GOODPUT:.0%} of the bound")
    kept = Target(f"at least {KEPT:.0%} of the accepted requests are completed in time")
    beaten = Target("no peer has a goodput more than 1 % above Shoal's")
    slower = Target(
        f"p50 and p99 are not worse than for peers that complete {SURVIVES:.0%} of the requests"
    )
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
    """Compares Shoal's goodput with the goodput of the best peer.

    Peers that complete their accepted requests in time are preferred.
    """
    ahead = {p: row for p, row in peers.items() if row["goodput"] > BEATEN * ours["goodput"]}
    if not ahead:
        return None, None
    fair = min(KEPT, ours["kept_share"])
    peer = max(ahead, key=lambda p: (ahead[p]["kept_share"] >= fair, ahead[p]["goodput"]))
    its = ahead[peer]
    miss = f"{name}: {peer} has {its['goodput'] / ours['goodput']:.1%} of Shoal's goodput"
    in_time = f"{its['kept_share']:.1%} of {peer}'s accepted requests are completed in time"
    in_time += f", and {ours['kept_share']:.1%} of Shoal's"
    return (miss, in_time) if its["kept_share"] < fair else (f"{miss}; {in_time}", None)


def _kept(name: str, cell: dict[str, Any], ours: dict[str, Any]) -> tuple[str | None, str | None]:
    if ours["kept_share"] >= KEPT:
        return None, None
    miss = f"{name}: {ours['kept_share']:.1%}"
    if "kept_share_but_for_the_change" in ours:
        calm = ours["kept_share_but_for_the_change"]
        miss += f", or {calm:.1%} without the requests around the change of the device"
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
    """Returns a description of the miss, and the explanation of the miss.

    The explanation names a reference. The explanation is None if no reference explains the miss.
    References that do not explain the miss are added to the description.
    """
    explained = None
    for key in references:
        if found := cell.get(key):
            reference = f"{REFERENCES[key]} {does} {found[figure]:.1%}"
            # A reference whose result is worse than Shoal's does not explain the miss.
            if ours[figure] <= found[figure] < goal:
                explained = reference
            else:
                miss += f"; {reference}"
    return miss, explained
