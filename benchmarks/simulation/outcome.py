"""What became of the requests of one run, and the figures drawn from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """`accepted` unless refused on arrival; `done` when answered, infinity if never."""

    arrived: float
    accepted: bool = True
    done: float = math.inf


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one policy in one run. Seconds, and items a second."""

    offered: float
    goodput: float
    accepted_share: float
    kept_share: float
    p50: float
    p99: float


def figures(requests: Sequence[Request], slo: float) -> Figures:
    """Of the requests that arrive after a start of three SLOs and at least one SLO before the end:
    later ones compete with nobody for what is left in a queue. Goodput counts those of them that
    are answered within the SLO, per second of such arrivals.

    Latencies are those of accepted requests; one that was accepted and never answered counts as
    infinitely late, and so against `kept_share`, the share of the accepted answered in time.
    """
    begin, end = requests[0].arrived + 3 * slo, requests[-1].arrived - slo
    counted = [request for request in requests if begin <= request.arrived <= end]
    accepted = sorted(r.done - r.arrived for r in counted if r.accepted)
    kept = sum(1 for latency in accepted if latency <= slo)
    return Figures(
        offered=len(counted) / (end - begin),
        goodput=kept / (end - begin),
        accepted_share=len(accepted) / len(counted),
        kept_share=kept / len(accepted) if accepted else 1.0,
        p50=quantile(accepted, 0.50),
        p99=quantile(accepted, 0.99),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan
