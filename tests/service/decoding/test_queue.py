"""FairQueue: whatever clients send, their shares of decode time are equal."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.queue import FairQueue
from service.errors import DecodeQueueFull

SECONDS = st.sampled_from([0.002, 0.01, 0.1, 0.5, 1.0, 2.0])
ERROR = st.sampled_from([1.0, 0.25, 0.5, 2.0, 4.0])


@dataclass(eq=False)
class Job:
    client: str
    seconds: float
    """What it takes, whatever was estimated."""


@dataclass
class Decoder:
    """Decoders on virtual time, in front of which a queue lies."""

    queue: FairQueue[Job] = field(default_factory=lambda: FairQueue(4096))
    places: int = 1
    now: float = 0.0
    running: list[tuple[float, Job]] = field(default_factory=list)
    received: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    log: list[Job] = field(default_factory=list)

    def put(self, client: str, seconds: float, error: float = 1.0) -> Job:
        job = Job(client, seconds)
        self.queue.put(job, client, seconds * error)
        return job

    def step(self) -> Job | None:
        """Take jobs until all places are busy, and end the first that is done."""
        while len(self.running) < self.places and (job := self.queue.take()):
            self.log.append(job)
            self.running.append((self.now + job.seconds, job))
        if not self.running:
            return None
        ended = min(self.running, key=lambda entry: entry[0])
        self.running.remove(ended)
        self.now, job = ended
        self.received[job.client] += job.seconds
        self.queue.charge(job.client, job.seconds)
        return job


jobs = st.lists(st.tuples(SECONDS, ERROR), min_size=1, max_size=8)


@given(
    first=jobs,
    second=jobs,
    others=st.lists(st.tuples(st.integers(0, 40), st.sampled_from("cdefgh"), SECONDS, ERROR)),
    places=st.integers(1, 4),
)
def test_queue_gives_waiting_clients_equal_time(
    first: list[tuple[float, float]],
    second: list[tuple[float, float]],
    others: list[tuple[int, str, float, float]],
    places: int,
) -> None:
    """Two clients that always have jobs waiting receive times that differ by one job of each for
    each decoder, whatever their jobs cost, however wrong the estimates, and whoever else comes."""
    decoder = Decoder(places=places)
    sent = {"a": first, "b": second}
    largest = {client: max(s * max(1.0, e) for s, e in jobs) for client, jobs in sent.items()}
    for client in sent:
        for _ in range(6):
            for seconds, error in sent[client]:
                decoder.put(client, seconds, error)
    for turn in range(40):
        for _, client, seconds, error in (other for other in others if other[0] == turn):
            decoder.put(client, seconds, error)
        ended = decoder.step()
        assert ended is not None
        if ended.client in sent:
            index = decoder.log.index(ended) % len(sent[ended.client])
            decoder.put(ended.client, *sent[ended.client][index])
        apart = abs(decoder.received["a"] - decoder.received["b"])
        assert apart <= places * sum(largest.values()) + 1e-9


@given(
    before=st.lists(st.tuples(st.sampled_from("abcde"), SECONDS, ERROR), max_size=40),
    steps=st.integers(0, 30),
    seconds=SECONDS,
)
def test_queue_serves_new_clients_soon(
    before: list[tuple[str, float, float]], steps: int, seconds: float
) -> None:
    """However much others have sent, none of them receives more than its largest job, the time of
    the new one, and what it was estimated too high, before a new client is served."""
    decoder = Decoder()
    for client, cost, error in before:
        decoder.put(client, cost, error)
    for _ in range(steps):
        decoder.step()
    job = decoder.put("new", seconds)
    earlier = decoder.received.copy()
    while decoder.step() is not job:
        pass
    for client in "abcde":
        own = [(cost, cost * error) for name, cost, error in before if name == client]
        largest = max((cost for cost, _ in own), default=0.0)
        estimated = max((estimate for _, estimate in own), default=0.0)
        got = decoder.received[client] - earlier[client]
        assert got <= largest + seconds + estimated + 1e-9
        if all(cost == estimate for cost, estimate in own):
            assert got <= largest + seconds + 1e-9


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.integers(0, 30), SECONDS)
def test_queue_serves_new_clients_after_one_job_of_each(
    before: list[str], steps: int, seconds: float
) -> None:
    """Where all jobs take the same time, at most one of each client precedes a new one's."""
    decoder = Decoder()
    for client in before:
        decoder.put(client, seconds)
    for _ in range(steps):
        decoder.step()
    decoder.log.clear()
    job = decoder.put("new", seconds)
    while decoder.step() is not job:
        pass
    assert max(Counter(entry.client for entry in decoder.log).values()) == 1


@pytest.mark.parametrize("attackers", [1, 10, 40])
def test_queue_serves_few_cheap_jobs_soon(attackers: int) -> None:
    """A client that sends a cheap job now and then waits for two expensive jobs at most, however
    many clients always have such jobs waiting."""
    decoder, sent = Decoder(), dict[Job, float]()
    for number in range(3 * attackers):
        decoder.put(f"attacker{number % attackers}", 1.0)
    for turn in range(200):
        if turn % 2:
            sent[decoder.put("honest", 0.02)] = decoder.now
        ended = decoder.step()
        assert ended is not None
        if ended in sent:
            assert decoder.now - sent.pop(ended) <= 2.05
        else:
            decoder.put(ended.client, 1.0)
    assert len(sent) <= 2


@pytest.mark.parametrize("attackers", [1, 10])
@pytest.mark.parametrize("underestimated", [1.0, 0.25])
def test_queue_keeps_debts_of_clients_that_pause(attackers: int, underestimated: float) -> None:
    """Sending one expensive job at a time gains nothing over a client that always waits."""
    decoder = Decoder()
    for _ in range(3):
        decoder.put("honest", 0.02)
    for number in range(attackers):
        decoder.put(f"attacker{number}", 1.0, underestimated)
    while decoder.now < 200 and (ended := decoder.step()):
        error = 1.0 if ended.client == "honest" else underestimated
        decoder.put(ended.client, ended.seconds, error)
    fair = decoder.now / (attackers + 1)
    assert decoder.received["honest"] >= fair - 2


def test_queue_lets_debts_fade_with_service_of_others() -> None:
    """A client is not served until others have received what it has; afterwards it is as any."""
    decoder = Decoder()
    for client in "abb":
        decoder.put(client, 1.0)
    decoder.queue.charge("a", 10.0)  # killed more than once
    late = decoder.put("c", 1.0)
    order = [decoder.step() for _ in range(3)]
    assert [job.client for job in order if job] == ["b", "c", "b"] and order[1] is late
    for _ in range(20):
        decoder.put("b", 1.0)
    clients = [job.client for job in (decoder.step() for _ in range(21)) if job]
    assert clients.index("a") == pytest.approx(8, abs=2)
    decoder.put("d", 1.0)
    decoder.step()
    assert "a" not in decoder.queue._clients


def test_queue_adds_time_to_a_client_with_running_jobs() -> None:
    """The time does not replace the estimates of the running jobs."""
    queue = FairQueue[str](16)
    queue.put("job", "a", 2.0)
    queue.take()
    queue.add("a", 3.0)
    assert queue.seconds_until_done("b", 5.0) == 7.0
    queue.put("a2", "a", 1.0)
    queue.put("b1", "b", 5.5)
    queue.charge("a", 2.0)
    assert queue.take() == "b1"


def test_queue_adds_time_to_a_debt() -> None:
    """The debt is the sum, also if the added time raises the level above the old debt."""
    queue = FairQueue[str](16)
    queue.put("job", "a", 1.0)
    queue.take()
    queue.charge("a", 1.0)
    queue.put("b1", "b", 1.0)
    queue.add("a", 5.0)
    assert queue.seconds_until_done("a", 1.0) == 1.0 + 1.0
    number = 1
    while "a" in queue._clients:
        number += 1
        queue.put(f"b{number}", "b", 1.0)
        queue.take()
        queue.charge("b", 1.0)
    assert number == 6


def test_queue_keeps_no_debt_where_no_client_waits() -> None:
    """What a client used while it was alone delays none of its later jobs."""
    decoder = Decoder()
    for _ in range(100):
        decoder.put("alone", 1.0)
        decoder.step()
    for _ in range(5):
        decoder.put("other", 1.0)
        decoder.put("alone", 1.0)
    assert {job.client for job in (decoder.step(), decoder.step()) if job} == {"other", "alone"}


def test_queue_gives_no_credit_to_clients_that_only_run() -> None:
    """A client whose jobs run and do not wait is not owed what others received meanwhile."""
    queue = FairQueue[str](100)
    queue.put("long", "a", 1.0)
    queue.take()
    for _ in range(100):
        queue.put("b", "b", 1.0)
        queue.take()
        queue.charge("b", 1.0)
    for number in range(20):
        queue.put(f"a{number}", "a", 1.0)
    queue.put("new", "new", 1.0)
    taken = [queue.take() for _ in range(3)]
    assert "new" in taken


def test_queue_counts_running_jobs() -> None:
    """Decoders that become free at the same moment go to different clients."""
    queue = FairQueue[str](100)
    for number in range(12):
        queue.put(f"{number}", "abc"[number // 4], 1.0)
    assert sorted("abc"[int(queue.take() or 0) // 4] for _ in range(6)) == [*"aabbcc"]


@pytest.mark.parametrize("arriving", [1, 2, 3])
def test_queue_does_not_starve_a_client_behind_ever_new_ones(arriving: int) -> None:
    """A client that waits all the time is served, even if clients seen for the first time send
    more than can be decoded."""
    decoder = Decoder()
    for _ in range(60):
        decoder.put("steady", 0.1)
    decoder.step()
    for turn in range(60):
        for number in range(arriving):
            decoder.put(f"new {turn} {number}", 0.1)
        decoder.step()
    assert decoder.received["steady"] >= 0.3


def test_queue_serves_cheap_jobs_of_a_client_first() -> None:
    """Smallest estimate first; equal ones in the order of arrival."""
    queue = FairQueue[str](16)
    for name, seconds in (("c", 1), ("a", 0.1), ("d", 1), ("b", 0.1)):
        queue.put(name, "client", seconds)
    taken = []
    while job := queue.take():
        taken.append(job)
        queue.charge("client", 0.1)
    assert taken == ["a", "b", "c", "d"]


@pytest.mark.parametrize("other", [False, True])
def test_queue_does_not_starve_expensive_jobs(other: bool) -> None:
    """Cheap jobs of a client overtake an expensive one only for as long as it takes itself."""
    decoder = Decoder()
    large = decoder.put("a", 1.0)
    for _ in range(1000):
        decoder.put("a", 0.01)
        if other:
            decoder.put("b", 0.01)
        if decoder.step() is large:
            break
    assert decoder.log[-1] is large
    assert decoder.received["a"] <= 2.1


actions = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcdef"), st.floats(-1, 4)),
    st.tuples(st.just("take"), st.just(""), st.just(0.0)),
    st.tuples(st.just("discard"), st.just(""), st.floats(0, 1)),
    st.tuples(st.just("charge"), st.just(""), st.floats(-1, 9)),
    st.tuples(st.just("add"), st.sampled_from("abcdef"), st.floats(-1, 9)),
    st.tuples(st.just("ask"), st.sampled_from("abcdef"), st.floats(-1, 4)),
)


@given(st.integers(1, 6), st.lists(actions, max_size=120))
def test_queue_loses_and_repeats_no_job(
    max_jobs: int, happens: list[tuple[str, str, float]]
) -> None:
    """Each job that was put is taken, discarded, displaced or still there, and only one of these.
    Clients without waiting jobs are rejected only when as many clients wait as jobs may. Estimates
    are finite and not negative."""
    queue, waiting, running = FairQueue[int](max_jobs), dict[int, str](), list[str]()
    for number, (action, client, value) in enumerate(happens):
        if action == "put":
            held = Counter(waiting.values())
            try:
                displaced = queue.put(number, client, value)
            except DecodeQueueFull:
                assert len(waiting) == max_jobs
                assert max(held.values()) <= held[client] + 1
                assert held[client] or len(held) == max_jobs
            else:
                if displaced is not None:
                    loser = waiting.pop(displaced)
                    assert held[loser] == max(held.values()) >= held[client] + 2
                waiting[number] = client
        elif action == "take":
            job = queue.take()
            assert (job is None) == (not waiting)
            if job is not None:
                running.append(waiting.pop(job))
        elif action == "discard":
            job = int(value * len(happens))
            assert queue.discard(job) == (waiting.pop(job, None) is not None)
        elif action == "charge" and running:
            queue.charge(running.pop(int(abs(value)) % len(running)), value)
        elif action == "add":
            queue.add(client, value)
        elif action == "ask":
            seconds = queue.seconds_until_done(client, value)
            assert math.isfinite(seconds) and seconds >= max(0.0, value)
        assert len(queue) == len(waiting)
    while (job := queue.take()) is not None:
        waiting.pop(job)
    assert not waiting


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(SECONDS, min_size=1), min_size=1),
    st.sampled_from("abcdefg"),
    SECONDS,
)
def test_seconds_until_done_is_that_of_equal_shares(
    sent: dict[str, list[float]], client: str, seconds: float
) -> None:
    """When the job is done, each other client has received as much as this one, or all it wants;
    and a decoder needs about that long."""
    decoder = Decoder()
    for name, costs in sent.items():
        for cost in costs:
            decoder.put(name, cost)
    own = sum(sent.get(client, [])) + seconds
    expected = own + sum(min(sum(costs), own) for name, costs in sent.items() if name != client)
    said = decoder.queue.seconds_until_done(client, seconds)
    assert said == pytest.approx(expected)
    last = decoder.put(client, seconds)
    largest = max(seconds, *(max(costs) for costs in sent.values()))
    while decoder.step() is not last:
        pass
    assert decoder.now <= said + 2 * largest * len(sent) + 1e-9


def test_seconds_until_done_includes_running_jobs_and_debts() -> None:
    queue = FairQueue[str](16)
    queue.put("a1", "a", 2.0)
    assert queue.seconds_until_done("b", 5.0) == 7.0
    queue.take()
    assert queue.seconds_until_done("b", 5.0) == 7.0
    queue.put("b1", "b", 0.5)
    queue.put("b2", "b", 2.0)
    queue.charge("a", 3.0)
    assert queue.seconds_until_done("a", 1.0) == 2.5 + 1.0
    assert queue.seconds_until_done("c", 1.0) == 1.0 + 1.0


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda queue, seconds: queue.put("job", "client", seconds),
        lambda queue, seconds: queue.charge("client", seconds),
        lambda queue, seconds: queue.add("client", seconds),
        lambda queue, seconds: queue.seconds_until_done("client", seconds),
    ],
)
def test_queue_rejects_times_that_are_not_finite(
    call: Callable[[FairQueue[str], float], object], seconds: float
) -> None:
    """One of them would poison every level."""
    queue = FairQueue[str](4)
    with pytest.raises(ValueError, match="seconds"):
        call(queue, seconds)
    assert len(queue) == 0 and queue.seconds_until_done("client", 1.0) == 1.0


@pytest.mark.parametrize("at_once", [1, 2, 7])
@pytest.mark.parametrize("expensive_first", [False, True])
def test_queue_forgets_clients(at_once: int, expensive_first: bool) -> None:
    """However many clients come and go, those that are remembered are few."""
    queue = FairQueue[Hashable](64)
    for number in range(5000):
        queue.put(number, number, 1.0)
        if len(queue) >= at_once and (job := queue.take()) is not None:
            queue.charge(job, 100.0 if expensive_first and number < 1000 else 0.001)
        assert len(queue._clients) <= at_once + 64
        assert len(queue._backlogs) == len(queue._clients)
