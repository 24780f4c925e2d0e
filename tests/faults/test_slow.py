"""A thousand slow clients beside normal ones: what those notice of it."""

from __future__ import annotations

import statistics
import time
import urllib.parse

import pytest

from shoal.load import processes
from shoal.load.arrivals import poisson
from shoal.load.generator import Job
from shoal.load.images import Picture, request
from tests.e2e.process import Server
from tests.faults.faulty import FAULTY
from tests.faults.process import descriptors
from tests.faults.slow import slow_clients
from tests.faults.test_load import BUSY, p99
from tests.service.conftest import png

pytestmark = [pytest.mark.slow, pytest.mark.faults]
SLOW = 1000
RATE, SECONDS, CONNECTIONS = 200.0, 6.0, 16
ROUNDS = 5
REFUSED = 30.0
"""Seconds that count for a request that was refused."""


def measured(server: Server) -> tuple[float, float]:
    """Of requests at random moments, sent by a process of their own, the 99th percentiles of what
    each took from the moment at which it was meant to be sent, and of how late it was sent."""
    url = f"{server.url}/predict"
    upload = request(urllib.parse.urlsplit(url), Picture("7.png", png(7), None), raw=False)
    times = poisson(RATE, SECONDS, seed=1)
    job = Job(url, [upload], ["horse"], SECONDS, 30, 1, times, CONNECTIONS)
    (outcome,) = processes.run([job], lambda answered, failed: None)
    assert {*outcome.status} <= {200, 503} and outcome.different == 0
    ended = zip(outcome.status, outcome.latency, strict=True)
    took = [seconds if status == 200 else REFUSED for status, seconds in ended]
    return p99(took), p99(outcome.send_lag)


def test_slow_clients_cause_no_full_garbage_collection() -> None:
    """While a thousand slow clients are each cut off twice, no full collection holds the event
    loop."""
    with Server(*FAULTY) as server:
        server.wait_until_ready()
        with slow_clients(server.url, SLOW):
            time.sleep(3 * SECONDS)
        assert server.stop() == 0
        cut_off = sum(record.get("status") == 408 for record in server.log())
        assert cut_off > SLOW
        assert server.log_of("the loop")["full_collections"] == 0


def test_slow_clients_do_not_delay_others() -> None:
    """Beside a thousand slow clients, the 99th percentile at most doubles (median of five
    rounds)."""
    with Server(*FAULTY, ENGINE_SECONDS="0.005") as server:
        server.wait_until_ready()
        measured(server)
        rounds, late = [], 0.0
        for _ in range(ROUNDS):
            alone, late_alone = measured(server)
            with slow_clients(server.url, SLOW):
                assert descriptors(server.pid) > 0.8 * SLOW
                beside, late_beside = measured(server)
            rounds.append((alone, beside))
            late = max(late, late_alone, late_beside)
            time.sleep(1)
        assert server.stop() == 0
    told = ", ".join(f"{1000 * alone:.0f} and {1000 * beside:.0f}" for alone, beside in rounds)
    print(f"p99 in ms, alone and beside {SLOW} slow clients: {told}; {1000 * late:.0f} ms late")
    if late > BUSY:
        pytest.skip(f"this machine has too much else to do: {told}; sent {late:.2f} s late")
    assert statistics.median(beside / alone for alone, beside in rounds) <= 2, told
