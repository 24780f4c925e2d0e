"""Outcome: the requests of one run, and the figures computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One request. Times are in seconds."""

    arrived: float
    accepted: bool = True
    """False: rejected on arrival."""
    done: float = math.inf
    """When it was answered; infinity if never."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one policy in one run, in seconds and requests per second."""

    offered: float
    goodput: float
    accepted_share: float
    kept_share: float
    p50: float
    p99: float


def figures(requests: Sequence[Request], slo: float) -> Figures:
    """Figures of the requests between a start of three SLOs and an end of one SLO.

    Requests at the end are left out because no further ones compete with them. Goodput is the
    number of requests answered within the SLO per second. Latencies are those of accepted requests.
    An accepted request without an answer has an infinite latency, and so reduces `kept_share`, the
    share of accepted requests that were answered in time.
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
