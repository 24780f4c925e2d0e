"""Results of a load test: numbers, the table, and the plot."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest

from shoal.load.connection import FAILED, TIMED_OUT
from shoal.load.report import plot, summarize, table
from tests.shoal.load.fakes import samples_of


def test_summarize_counts_the_measured_time_only() -> None:
    """Results cover the measured time only, and an error counts as an infinite latency."""
    run = summarize("x", 10.0, [samples_of([200] * 8 + [503, 0], 0.001)], 0.0, 1.0)
    assert run.statuses == {"failed": 1, "200": 8, "503": 1}
    assert run.achieved == 8
    assert run.latency["max"] == pytest.approx(0.008)
    assert run.latency["p50"] == pytest.approx(0.005)
    assert run.latency_of_all["p50"] == pytest.approx(0.006)
    assert run.latency_of_all["p99"] == math.inf
    assert json.loads(json.dumps(run.to_dict(), allow_nan=False))["latency_of_all"]["p99"] is None
    late = summarize("x", 10.0, [samples_of([200] * 10)], 0.5, 1.0)
    assert late.statuses == {"200": 5}


@pytest.mark.parametrize(
    ("changes", "limited"),
    [({}, False), ({"cpu_share": 0.95}, True), ({"send_lag": [0.01] * 9}, True)],
)
def test_report_says_when_the_generator_is_the_limit(
    changes: dict[str, Any], limited: bool
) -> None:
    """A generator that is too busy or too late is reported."""
    samples = samples_of([200] * 4)
    for name, value in changes.items():
        setattr(samples, name, value)
    run = summarize("x", 10.0, [samples], 0.0, 1.0)
    assert run.limited_by_generator is limited
    assert ("generator" in table([run])) is limited


def test_summarize_measures_the_rate_of_a_closed_loop() -> None:
    """Without a rate, the rate of requests that were sent in the measured time is reported."""
    run = summarize("3 connections", None, [samples_of([200] * 10, 0.001)], 0.0, 0.5)
    assert run.offered == 10.0  # five in half a second


def test_summarize_joins_the_samples_of_all_generators() -> None:
    """Requests, bytes and answers of another class are added up; each generator has its CPU."""
    first, second = samples_of([200] * 4, 0.001), samples_of([503] * 2, 0.001)
    first.different, second.different = 1, 2
    first.bytes_sent = second.bytes_sent = 100
    first.bytes_received, second.bytes_received = 10, 20
    first.cpu_share, second.cpu_share = 0.25, 0.5
    first.send_lag, second.send_lag = [0.0], [0.001]
    run = summarize("x", 6.0, [first, second], 0.0, 1.0)
    assert run.statuses == {"200": 4, "503": 2}
    assert (run.different, run.bytes_sent, run.bytes_received) == (3, 200, 30)
    assert run.generator_cpu == [0.25, 0.5]
    assert 0 < run.generator_lag <= 0.001
    assert len(run.latencies) == 4


def test_summarize_names_requests_without_a_status() -> None:
    """Broken connections are `failed` and missing answers `timed out`."""
    run = summarize("x", 3.0, [samples_of([FAILED, TIMED_OUT, 200])], 0.0, 1.0)
    assert run.statuses == {"timed out": 1, "failed": 1, "200": 1}


def test_run_becomes_json_without_its_latencies() -> None:
    """Every field but the single latencies is there, and infinite values are null."""
    run = summarize("x", 2.0, [samples_of([503, 503])], 0.0, 1.0)
    fields = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert set(fields["latency"].values()) == {None}
    assert "latencies" not in fields
    assert fields["limited_by_generator"] is False
    assert fields["statuses"] == {"503": 2}


def test_table_has_a_header_and_a_line_for_each_run() -> None:
    """Latencies are in milliseconds, and a run without answers has none."""
    answered = summarize("10/s poisson", 10.0, [samples_of([200] * 4, 0.001)], 0.0, 1.0)
    rejected = summarize("20/s poisson", 20.0, [samples_of([503] * 4)], 0.0, 1.0)
    header, first, second = table([answered, rejected]).splitlines()
    columns = "load offered/s answered/s p50 p90 p99 p99.9 max statuses"
    assert " ".join(header.split()) == columns
    assert first.split() == [
        "10/s",
        "poisson",
        "10",
        "4",
        "3.00",
        "4.00",
        "4.00",
        "4.00",
        "4.00",
        "4",
        "x",
        "200",
    ]
    assert second.split() == [
        "20/s",
        "poisson",
        "20",
        "0",
        "-",
        "-",
        "-",
        "-",
        "-",
        "4",
        "x",
        "503",
    ]


def test_table_shows_answers_of_another_class() -> None:
    """Answers that named another class than before the load are counted in the line."""
    samples = samples_of([200] * 4)
    assert "ANOTHER CLASS" not in table([summarize("x", 4.0, [samples], 0.0, 1.0)])
    samples.different = 3
    assert "3 RESPONSES WITH ANOTHER CLASS" in table([summarize("x", 4.0, [samples], 0.0, 1.0)])


@pytest.mark.slow  # loads matplotlib
@pytest.mark.parametrize("statuses", [[200] * 9, [200], [503]], ids=["many", "one", "none"])
def test_plot_draws_any_number_of_answers(tmp_path: pathlib.Path, statuses: list[int]) -> None:
    """Runs with many answers, with one and with none give a PNG, with an SLO and without."""
    pytest.importorskip("matplotlib", reason="the extra 'train' is not installed")
    runs = [summarize("x", rate, [samples_of(statuses)], 0.0, 1.0) for rate in (20.0, 10.0)]
    for slo in (None, 0.1):
        plot(runs, slo, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "plot.png").unlink()
