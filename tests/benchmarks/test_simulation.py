"""The bounds that the simulator holds the batcher against are bounds, and are tight; and what it
says about a policy is right where that can be told by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching import LatencyTable, policy
from batching.timeline import Timeline
from benchmarks.simulate import OUT, RESULTS, ROOT, options
from benchmarks.simulation.arrivals import TRACES
from benchmarks.simulation.bounds import clairvoyant, fluid
from benchmarks.simulation.devices import DEVICES, Clockwork, Device
from benchmarks.simulation.hindsight import FixedMargin, hindsight
from benchmarks.simulation.outcome import Figures, Request, figures
from benchmarks.simulation.peers import PEERS
from benchmarks.simulation.shoal import shoal
from benchmarks.simulation.verdict import verdict

SLO = 3.0
DEVICE = Device("test", lambda size: 1.0 + 0.4 * size, buckets=(1, 2, 4, 64))


def most_by_trying_everything(arrivals: list[float], device: Device, slo: float) -> int:
    """Every subset as the next batch, in every lane, begun as early as possible; then every subset
    of the rest."""

    def most(free: tuple[float, ...], rest: tuple[float, ...]) -> int:
        best = 0
        for chosen in range(1, 2 ** len(rest)):
            batch = [t for k, t in enumerate(rest) if chosen >> k & 1]
            others = tuple(t for k, t in enumerate(rest) if not chosen >> k & 1)
            for lane in range(len(free)):
                end = max(free[lane], batch[-1]) + device.mean(len(batch))
                if end <= batch[0] + slo:
                    then = (*free[:lane], end, *free[lane + 1 :])
                    best = max(best, len(batch) + most(then, others))
        return best

    return most((0.0,) * device.lanes, tuple(arrivals))


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


@settings(deadline=None)
@given(traces.filter(lambda arrivals: len(arrivals) <= 4))
def test_the_flow_is_not_beaten_in_two_lanes(arrivals: list[float]) -> None:
    device = Device("two", lambda size: 1.0 + 0.4 * size, buckets=(1, 2, 4, 64), lanes=2)
    accepted = sum(request.accepted for request in fluid(arrivals, device, SLO, math.inf))
    assert accepted >= most_by_trying_everything(arrivals, device, SLO)


def test_the_flow_of_two_lanes_by_hand() -> None:
    """Forty arrive a second; in either lane ten a second can be answered, however they are
    batched."""
    device = Device("two", lambda size: 0.1 * size, buckets=(1, 64), lanes=2)
    assert device.capacity(1.0) == pytest.approx(20.0)
    requests = fluid([n / 40 for n in range(1, 1601)], device, 1.0, math.inf)
    assert sum(request.accepted for request in requests) == pytest.approx(800 + 20, abs=2)


def test_a_batch_goes_to_the_lane_that_is_free_first() -> None:
    """It ends about 1 s after it begins, and the noise of either lane is its own."""
    clockwork = Clockwork(Device("two", lambda _: 1.0, lanes=2), math.inf, 1)
    assert clockwork.free_at == 0.0
    first, second = clockwork.compute(64, 0.0), clockwork.compute(64, 0.0)
    assert [first, second] == [pytest.approx(1.0, rel=0.2)] * 2
    assert first != second
    assert clockwork.free_at == min(first, second)
    third = clockwork.compute(64, 0.5)
    assert third == pytest.approx(min(first, second) + 1.0, rel=0.2)
    assert clockwork.free_at == max(first, second)


def test_a_batch_grows_while_all_lanes_are_busy() -> None:
    """Two go to a lane each; who comes then is computed together."""
    clockwork = Clockwork(Device("two", lambda _: 1.0, lanes=2), math.inf, 1)
    first, second, *others = PEERS["greedy"]([0.0, 0.1, 0.2, 0.3, 0.4], clockwork, 9.0)
    assert first.done == pytest.approx(1.0, rel=0.2)
    assert second.done == pytest.approx(1.1, rel=0.2)
    (together,) = {request.done for request in others}
    assert together == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("name", ["shoal", *PEERS])
def test_both_lanes_are_used(name: str) -> None:
    """By every policy: 1.6 times what one of them can do is answered."""
    device = Device("two", lambda size: 1e-3 * size, lanes=2)
    arrivals = TRACES["poisson"](1600.0, 1000, 2)
    serve = {"shoal": shoal, **PEERS}[name]
    found = figures(serve(arrivals, Clockwork(device, math.inf, 2), 0.1), 0.1)
    assert found.goodput > 0.95 * found.offered


def test_the_flow_knows_of_the_slow_half() -> None:
    """Ten arrive a second, before and after: enough for all, then for half of them."""
    device = Device("slow", lambda size: 0.1 * size, buckets=(1, 64), slower=2.0)
    requests = fluid([n / 10 for n in range(1, 401)], device, 1.0, 20.0)
    assert sum(request.accepted for request in requests[:190]) == 190
    assert sum(request.accepted for request in requests[210:]) == pytest.approx(95, abs=2)


def test_who_has_not_heard_of_the_change_breaks_promises() -> None:
    """Twenty arrive a second, ten of which can be answered, then five: until it is heard of, as
    many are let in as before."""
    device = Device("slow", lambda size: 0.1 * size, buckets=(1, 64), slower=2.0)
    arrivals = [n / 20 for n in range(1, 801)]
    foreseen = fluid(arrivals, device, 1.0, 20.0)
    requests = fluid(arrivals, device, 1.0, 20.0, known_from=20.2)
    broken = [r.arrived for r in requests if r.accepted and r.done > r.arrived + 1.0 + 1e-6]
    assert len(broken) == pytest.approx(5 + 1, abs=1), (
        "half of one SLO's worth, and of the time since"
    )
    assert 19.0 <= min(broken) <= max(broken) < 20.2
    assert all(r.done <= r.arrived + 1.0 + 1e-6 for r in foreseen if r.accepted)
    assert sum(math.isfinite(r.done) for r in requests) == sum(r.accepted for r in foreseen)


def cell(of_bound: float = 1.0, kept: float = 1.0, **more: object) -> dict[str, Any]:
    """Ours beside one peer that is a tenth slower and answers as much."""
    ours = {"of_bound": of_bound, "kept_share": kept, "accepted_share": 1.0, "goodput": 100.0}
    ours |= {"kept_share_but_for_the_change": 1.0, "p50": 1.0, "p99": 2.0}
    rows = {"shoal": ours, "greedy": {**ours, "kept_share": 1.0, "p50": 1.1, "p99": 2.2}}
    return {"device": "gpu", "slo": 10, "trace": "ramp", "load": 1.0, "rows": rows, **more}


def reference(of_bound: float, kept: float) -> dict[str, float]:
    return {"of_bound": of_bound, "kept_share": kept}


@pytest.mark.parametrize(
    ("found", "met", "explained", "missed"),
    [
        (cell(), (1, 1), (0, 0), (0, 0)),
        (cell(of_bound=0.94, kept=0.98), (0, 0), (0, 0), (1, 1)),
        (cell(of_bound=0.94, clairvoyant={"of_bound": 0.96}), (0, 1), (0, 0), (1, 0)),
        (cell(of_bound=0.94, clairvoyant={"of_bound": 0.945}), (0, 1), (1, 0), (0, 0)),
        (cell(of_bound=0.94, hindsight={"of_bound": 0.96}), (0, 1), (0, 0), (1, 0)),
        (cell(of_bound=0.94, hindsight={"of_bound": 0.945}), (0, 1), (1, 0), (0, 0)),
        (cell(of_bound=0.94, hindsight={"of_bound": 0.0}), (0, 1), (0, 0), (1, 0)),
        (cell(0.94, 0.98, unforeseen=reference(0.945, 0.985)), (0, 0), (1, 1), (0, 0)),
        (cell(0.94, 0.98, unforeseen=reference(0.96, 0.995)), (0, 0), (0, 0), (1, 1)),
        (cell(0.94, 0.98, unforeseen=reference(0.93, 0.97)), (0, 0), (0, 0), (1, 1)),
        (cell(0.94, 0.98, told=reference(0.945, 0.985)), (0, 0), (1, 1), (0, 0)),
    ],
)  # fmt: skip
def test_a_target_is_met_explained_or_missed(
    found: dict[str, Any], met: object, explained: object, missed: object
) -> None:
    """Explained only by a reference that does better than ours, and itself does not reach it."""
    goodput, kept, beaten, slower = verdict([found])
    assert (goodput.met, kept.met) == met
    assert (len(goodput.explained), len(kept.explained)) == explained
    assert (len(goodput.missed), len(kept.missed)) == missed
    assert (beaten.met, slower.met) == (1, 2)


def test_the_best_in_hindsight_keeps_its_promises() -> None:
    """Of a run that answers the more the smaller its margin, and keeps the less: the settings hold
    for all of it, and for nothing afterwards."""
    before = policy.KEEPING_UP
    table = LatencyTable({1: [1.0] * 3})

    def attempt() -> tuple[Figures, float]:
        margin = Timeline(table, lanes=1).margin
        margin.observe(1.0, 9.0)
        goodput = 100 - 100 * margin.share - abs(policy.KEEPING_UP - 0.6)
        return Figures(100.0, goodput, 1.0, 1.0, 1.0, 1.0), 0.98 + margin.share

    best = hindsight(attempt, 0.99 + 1e-9)
    assert (best["margin"], best["keeping_up"]) == (0.02, 0.6)
    assert (best["goodput"], best["kept_share"]) == (pytest.approx(98.0), pytest.approx(1.0))
    assert hindsight(attempt, 2.0) == {"goodput": 0.0}
    assert before == policy.KEEPING_UP
    assert not isinstance(Timeline(table, lanes=1).margin, FixedMargin)


def test_a_peer_ahead_is_told() -> None:
    """In goodput by more than one in a hundred; in latency, only if it answers nearly all."""
    found = cell()
    greedy = found["rows"]["greedy"]
    greedy |= {"goodput": 102.0, "p50": 0.5}
    assert [target.met for target in verdict([found])] == [1, 1, 0, 1]
    greedy |= {"kept_share": 0.9}
    assert [(target.met, target.of) for target in verdict([found])[2:]] == [(0, 1), (0, 0)]


@pytest.mark.parametrize(
    ("ours", "greedy", "explained"),
    [
        (1.0, {"goodput": 104.0, "kept_share": 0.98}, True),
        (1.0, {"goodput": 104.0, "kept_share": 0.99}, False),
        (0.97, {"goodput": 104.0, "kept_share": 0.98}, False),
        (0.97, {"goodput": 104.0, "kept_share": 0.96}, True),
    ],
)
def test_what_explains_a_peer_ahead(ours: float, greedy: dict[str, float], explained: bool) -> None:
    """That it breaks promises, and more than we do."""
    found = cell(kept=ours)
    found["rows"]["greedy"] |= greedy
    assert bool(verdict([found])[2].explained) == explained


def test_a_peer_that_keeps_its_promises_does_not_hide_behind_one_that_does_not() -> None:
    """Though that one is further ahead."""
    found = cell()
    found["rows"]["greedy"] |= {"goodput": 110.0, "kept_share": 0.9}
    found["rows"]["linear fit"] = found["rows"]["greedy"] | {"goodput": 103.0, "kept_share": 1.0}
    (miss,) = verdict([found])[2].missed
    assert "linear fit has 103.0% of Shoal's goodput" in miss


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


def test_simulate_writes_to_the_repository_only_if_asked() -> None:
    """By default, results go to a folder that git ignores; `--update` writes the tracked ones."""
    assert options().parse_args([]).out == OUT
    assert "/.bench/" in (ROOT / ".gitignore").read_text().splitlines()
    assert OUT.is_relative_to(ROOT / ".bench")
    assert options().parse_args(["--update"]).out == RESULTS
