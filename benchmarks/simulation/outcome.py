"""Computes throughput and latency from the requests of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One request. Times are in seconds since the start of the run."""

    arrived: float
    """Time of arrival."""
    accepted: bool = True
    """Whether the request was accepted on arrival."""
    done: float = math.inf
    """Time of the response. Infinity: there was no response."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Results of one policy in one run. Only accepted requests have a latency."""

    offered: float
    """Number of requests that arrived per second."""
    goodput: float
    """Number of requests per second that were completed within the SLO, the timeout."""
    accepted_share: float
    """Share of the requests that were accepted."""
    kept_share: float
    """Share of the accepted requests that were completed within the SLO."""
    p50: float
    """Median latency in seconds."""
    p99: float
    """99th percentile of the latency in seconds."""


def figures(requests: Sequence[Request], slo: float) -> Figures:
    """Computes the results of a run.

    Requests that arrive in the first `3 * slo` seconds or the last `slo` seconds of the run are not
    counted: the first requests find an empty queue, and the last requests do not compete with later
    requests. An accepted request without a response has an infinite latency.

    Args:
        requests: Requests of the run, in order of arrival.
        slo: Timeout of every request in seconds.
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
    """Returns the smallest value x such that at least `share` of all values are at most x."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan
