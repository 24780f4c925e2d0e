"""The simulation: its bounds are correct and tight, and its verdicts agree with those by hand."""

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
def test_clairvoyant_is_as_good_as_trying_everything(arrivals: list[float]) -> None:
    """Its schedule of consecutive arrivals answers the maximum number of requests."""
    found = clairvoyant(arrivals, DEVICE, SLO) * len(arrivals)
    assert round(found) == most_by_trying_everything(arrivals, DEVICE, SLO)


@settings(deadline=None)
@given(traces)
def test_fluid_is_an_upper_bound(arrivals: list[float]) -> None:
    """The clairvoyant policy does not exceed it."""
    accepted = sum(request.accepted for request in fluid(arrivals, DEVICE, SLO, math.inf))
    assert accepted >= round(clairvoyant(arrivals, DEVICE, SLO) * len(arrivals))


@settings(deadline=None)
@given(traces.filter(lambda arrivals: len(arrivals) <= 4))
def test_fluid_is_an_upper_bound_for_two_lanes(arrivals: list[float]) -> None:
    """Trying every schedule does not exceed it."""
    device = Device("two", lambda size: 1.0 + 0.4 * size, buckets=(1, 2, 4, 64), lanes=2)
    accepted = sum(request.accepted for request in fluid(arrivals, device, SLO, math.inf))
    assert accepted >= most_by_trying_everything(arrivals, device, SLO)


def test_fluid_of_two_lanes_by_hand() -> None:
    """Forty requests arrive per second. Each lane can answer ten per second, however they are
    batched."""
    device = Device("two", lambda size: 0.1 * size, buckets=(1, 64), lanes=2)
    assert device.capacity(1.0) == pytest.approx(20.0)
    requests = fluid([n / 40 for n in range(1, 1601)], device, 1.0, math.inf)
    assert sum(request.accepted for request in requests) == pytest.approx(800 + 20, abs=2)


def test_clockwork_uses_the_first_free_lane() -> None:
    """A batch ends about 1 s after it begins, and each lane has noise of its own."""
    clockwork = Clockwork(Device("two", lambda _: 1.0, lanes=2), math.inf, 1)
    assert clockwork.free_at == 0.0
    first, second = clockwork.compute(64, 0.0), clockwork.compute(64, 0.0)
    assert [first, second] == [pytest.approx(1.0, rel=0.2)] * 2
    assert first != second
    assert clockwork.free_at == min(first, second)
    third = clockwork.compute(64, 0.5)
    assert third == pytest.approx(min(first, second) + 1.0, rel=0.2)
    assert clockwork.free_at == max(first, second)


def test_peer_batches_grow_while_all_lanes_are_busy() -> None:
    """Two requests go to one lane each; those that arrive then are computed together."""
    clockwork = Clockwork(Device("two", lambda _: 1.0, lanes=2), math.inf, 1)
    first, second, *others = PEERS["greedy"]([0.0, 0.1, 0.2, 0.3, 0.4], clockwork, 9.0)
    assert first.done == pytest.approx(1.0, rel=0.2)
    assert second.done == pytest.approx(1.1, rel=0.2)
    (together,) = {request.done for request in others}
    assert together == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("name", ["shoal", *PEERS])
def test_policies_use_both_lanes(name: str) -> None:
    """Every policy answers 1.6 times as many requests as one lane could."""
    device = Device("two", lambda size: 1e-3 * size, lanes=2)
    arrivals = TRACES["poisson"](1600.0, 1000, 2)
    serve = {"shoal": shoal, **PEERS}[name]
    found = figures(serve(arrivals, Clockwork(device, math.inf, 2), 0.1), 0.1)
    assert found.goodput > 0.95 * found.offered


def test_fluid_counts_the_slow_half() -> None:
    """Ten requests arrive per second: the device answers all of them before the change, and half of
    them after it."""
    device = Device("slow", lambda size: 0.1 * size, buckets=(1, 64), slower=2.0)
    requests = fluid([n / 10 for n in range(1, 401)], device, 1.0, 20.0)
    assert sum(request.accepted for request in requests[:190]) == 190
    assert sum(request.accepted for request in requests[210:]) == pytest.approx(95, abs=2)


def test_fluid_with_an_unknown_change_answers_some_requests_late() -> None:
    """Twenty requests arrive per second, of which ten can be answered, then five. Until the change
    is known, as many are accepted as before."""
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
def test_verdict_explains_a_miss_by_a_better_reference(
    found: dict[str, Any], met: object, explained: object, missed: object
) -> None:
    """A miss is explained only by a reference that does better than Shoal and misses the target as
    well."""
    goodput, kept, beaten, slower = verdict([found])
    assert (goodput.met, kept.met) == met
    assert (len(goodput.explained), len(kept.explained)) == explained
    assert (len(goodput.missed), len(kept.missed)) == missed
    assert (beaten.met, slower.met) == (1, 2)


def test_hindsight_chooses_among_settings_that_keep_enough() -> None:
    """Goodput falls with the margin and the kept share rises. The settings apply to the whole run
    and not afterwards."""
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


def test_verdict_reports_a_peer_that_is_ahead() -> None:
    """In goodput by more than 1 %; in latency only if it answers nearly all requests."""
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
def test_verdict_explains_a_peer_with_late_answers(
    ours: float, greedy: dict[str, float], explained: bool
) -> None:
    """A peer that is ahead is explained if more of its accepted requests are late than of
    Shoal's."""
    found = cell(kept=ours)
    found["rows"]["greedy"] |= greedy
    assert bool(verdict([found])[2].explained) == explained


def test_verdict_prefers_a_peer_in_time() -> None:
    """A peer whose answers are in time is reported even if another peer is further ahead."""
    found = cell()
    found["rows"]["greedy"] |= {"goodput": 110.0, "kept_share": 0.9}
    found["rows"]["linear fit"] = found["rows"]["greedy"] | {"goodput": 103.0, "kept_share": 1.0}
    (miss,) = verdict([found])[2].missed
    assert "linear fit has 103.0% of Shoal's goodput" in miss


def test_figures_of_a_few_requests() -> None:
    """Rejected, late, never answered, and in time. The first three SLOs and the last one do not
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
def test_traces_have_the_requested_rate(name: str) -> None:
    """Arrivals are in order, and about as many as requested."""
    arrivals = TRACES[name](100.0, 5000, 3)
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == pytest.approx(5000, rel=0.1)
    assert arrivals[-1] <= 50.1


@pytest.mark.parametrize("name", PEERS)
def test_peers_answer_a_single_request(name: str) -> None:
    """At once, or after the window of the policy."""
    clockwork = Clockwork(DEVICES["gpu"], math.inf, 1)
    alone = DEVICES["gpu"].mean(1)
    (request,) = PEERS[name]([1.0], clockwork, 1.0)
    waits = name in ("fixed window", "early freeze")
    assert request.done - 1.0 == pytest.approx(alone * (2 if waits else 1), rel=0.2)


def test_shoal_reaches_the_bound_under_overload() -> None:
    """At twice the capacity, accepted requests are answered in time."""
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
