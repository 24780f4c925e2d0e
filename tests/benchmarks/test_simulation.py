"""The bounds that the simulator holds the batcher against are bounds, and are tight; and what it
says about a policy is right where that can be told by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation.arrivals import TRACES
from benchmarks.simulation.bounds import clairvoyant, fluid
from benchmarks.simulation.devices import DEVICES, Clockwork, Device
from benchmarks.simulation.outcome import Request, figures
from benchmarks.simulation.peers import PEERS
from benchmarks.simulation.shoal import shoal

SLO = 3.0
DEVICE = Device("test", lambda size: 1.0 + 0.4 * size, buckets=(1, 2, 4, 64))


def most_by_trying_everything(arrivals: list[float], device: Device, slo: float) -> int:
    """Every subset as the next batch, begun as early as possible; then every subset of the rest."""

    def most(free: float, rest: tuple[float, ...]) -> int:
        best = 0
        for chosen in range(1, 2 ** len(rest)):
            batch = [t for k, t in enumerate(rest) if chosen >> k & 1]
            end = max(free, batch[-1]) + device.mean(len(batch))
            if end <= batch[0] + slo:
                others = tuple(t for k, t in enumerate(rest) if not chosen >> k & 1)
                best = max(best, len(batch) + most(end, others))
        return best

    return most(0.0, tuple(arrivals))


traces = st.lists(st.floats(0, 6, width=16), min_size=1, max_size=6).map(sorted)


@settings(deadline=None)
@given(traces)
def test_the_clairvoyant_does_what_trying_everything_finds(arrivals: list[float]) -> None:
    """Its schedule of unbroken runs loses nothing."""
    found = clairvoyant(arrivals, DEVICE, SLO) * len(arrivals)
    assert round(found) == most_by_trying_everything(arrivals, DEVICE, SLO)


@settings(deadline=None)
@given(traces)
def test_the_flow_is_never_beaten(arrivals: list[float]) -> None:
    """Not even by one who knows everything in advance."""
    accepted = sum(request.accepted for request in fluid(arrivals, DEVICE, SLO, math.inf))
    assert accepted >= round(clairvoyant(arrivals, DEVICE, SLO) * len(arrivals))


def test_the_flow_knows_of_the_slow_half() -> None:
    """Ten arrive a second, before and after: enough for all, then for half of them."""
    device = Device("slow", lambda size: 0.1 * size, buckets=(1, 64), slower=2.0)
    requests = fluid([n / 10 for n in range(1, 401)], device, 1.0, 20.0)
    assert sum(request.accepted for request in requests[:190]) == 190
    assert sum(request.accepted for request in requests[210:]) == pytest.approx(95, abs=2)


def test_figures_of_a_handful() -> None:
    """Refused, late, never answered, and in time; the first three SLOs and the last do not
    count."""
    start = Request(0.0, done=99.0)
    good = [Request(3.0 + n, done=3.5 + n) for n in range(6)]
    late, lost = Request(9.0, done=10.5), Request(10.0)
    refused = [Request(11.0, accepted=False), Request(13.0, accepted=False)]
    found = figures([start, *good, late, lost, *refused], 1.0)
    assert found.offered == 1.0
    assert found.goodput == pytest.approx(6 / 9)
    assert found.accepted_share == pytest.approx(8 / 9)
    assert found.kept_share == pytest.approx(0.75)
    assert found.p50 == pytest.approx(0.5)
    assert found.p99 == math.inf


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_offers_what_it_is_asked_for(name: str) -> None:
    """In order, and about as many as wanted."""
    arrivals = TRACES[name](100.0, 5000, 3)
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == pytest.approx(5000, rel=0.1)
    assert arrivals[-1] <= 50.1


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_alone_with_one_request(name: str) -> None:
    """It is answered: at once, or after the window that the policy insists on."""
    clockwork = Clockwork(DEVICES["gpu"], math.inf, 1)
    alone = DEVICES["gpu"].mean(1)
    (request,) = PEERS[name]([1.0], clockwork, 1.0)
    waits = name in ("fixed window", "early freeze")
    assert request.done - 1.0 == pytest.approx(alone * (2 if waits else 1), rel=0.2)


def test_shoal_against_the_bound() -> None:
    """The claim of the simulator in one small cell: twice the capacity, and who is let in is
    answered in time."""
    device = DEVICES["padded gpu"]
    slo = 10 * device.mean(1)
    rate = 2 * device.capacity(slo)
    arrivals = TRACES["poisson"](rate, 4000, 5)
    found = figures(shoal(arrivals, Clockwork(device, math.inf, 5), slo), slo)
    assert found.goodput >= 0.93 * device.capacity(slo)
    assert found.kept_share >= 0.99
