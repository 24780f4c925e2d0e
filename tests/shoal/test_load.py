"""The load generator: latency, failures, its own limits, and the report."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from shoal import bench
from shoal.command import parser
from shoal.load import images
from shoal.load.arrivals import constant, poisson
from shoal.load.generator import Generator, Job, Samples
from shoal.load.images import Picture, class_of
from shoal.load.load_test import find_max
from shoal.load.report import Run, summarize, table
from shoal.load.timer import Timer
from tests.e2e.process import ROOT, SCRIPTED, Server

HORSE = b'{"class": "horse", "probability": 0.9}'
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = HORSE, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def served(handle: Handle) -> AsyncIterator[str]:
    """Runs a server that calls `handle` for each connection. Broken connections are ignored."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/predict"


async def load(url: str, expected: str | None = None, **settings: Any) -> Samples:
    """Generates a load of half a second."""
    picture = Picture("a.jpg", b"pixels", None)
    request = images.request(urllib.parse.urlsplit(url), picture, raw=True)
    defaults: dict[str, Any] = {"duration": 0.5, "timeout": 60.0, "seed": 1, "times": None}
    job = Job(url=url, requests=[request], expected=[expected], **{**defaults, **settings})
    return await Generator(job, lambda answered, failed: None).run()


async def read_one(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\npixels")


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await read_one(reader)
        writer.write(response())


@pytest.mark.slow
async def test_open_loop_counts_latency_from_the_intended_moment() -> None:
    """While the server stalls, latency counts from the moment a request was meant to be sent."""
    stalled_until = 0.0

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal stalled_until
        stalled_until = stalled_until or time.monotonic() + 0.4
        while True:
            await read_one(reader)
            await asyncio.sleep(stalled_until - time.monotonic())
            writer.write(response())

    async with served(stall) as url:
        samples = await load(url, times=[0.01 * n for n in range(40)])
    assert samples.status == [200] * 40
    by_moment = sorted(zip(samples.intended, samples.latency, strict=True))
    for moment, latency in by_moment[:35]:
        assert latency > 0.4 - moment - 0.01


@pytest.mark.slow
async def test_closed_loop_keeps_its_concurrency() -> None:
    """Each connection has a request in flight; the server answers only once it has all of them."""
    in_flight = asyncio.Barrier(5)
    connections = rounds = 0

    async def answer_five(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, rounds
        connections += 1
        while True:
            await read_one(reader)
            if rounds < 5 and await in_flight.wait() == 0:
                rounds += 1
            writer.write(response())

    async with served(answer_five) as url:
        samples = await load(url, concurrency=5)
    assert (connections, rounds) == (5, 5)
    assert set(samples.status) == {200}


@pytest.mark.slow
async def test_open_loop_opens_its_connections_first() -> None:
    """Connections that are opened before the first request take turns."""
    requests = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(0)
        number = len(requests) - 1
        while True:
            await read_one(reader)
            requests[number] += 1
            writer.write(response())

    times = [0.02 * n for n in range(20)]
    async with served(count) as url:
        await load(url, times=times, concurrency=10)
        assert requests == [2] * 10
        requests.clear()
        await load(url, times=times)
    assert sum(requests) == len(times)


@pytest.mark.slow
async def test_generator_counts_answers_of_another_class() -> None:
    """An answer must name the class that the same image got before the load."""
    async with served(good) as url:
        correct = await load(url, "horse", times=[0.0, 0.1])
        swapped = await load(url, "dog", times=[0.0, 0.1])
    assert (correct.different, swapped.different) == (0, 2)


@pytest.mark.slow
async def test_generator_distinguishes_failures() -> None:
    """An error has its status, a broken connection 0, and a missing answer -1."""
    answers = iter([response(b"", "503 Service Unavailable"), b"", b"not HTTP at all\r\n\r\n"])

    async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        answer = next(answers, None)
        if answer is None:
            await reader.read()  # until the client closes the connection
        writer.write(answer or b"")

    async with served(fail) as url:
        samples = await load(url, times=[0.0, 0.1, 0.2, 0.3], timeout=0.5)
    assert sorted(samples.status) == [-1, 0, 0, 503]


@pytest.mark.slow
async def test_open_loop_replaces_connections_that_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are due when a connection closes are sent on another one, and the run ends."""
    monkeypatch.setattr("shoal.load.generator.MAX_CONNECTIONS", 1)

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        closing = response().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        writer.write(closing)

    async with served(close) as url, asyncio.timeout(60):
        samples = await load(url, times=[0.0] * 20)
    assert samples.status == [200] * 20


@pytest.mark.slow
async def test_generator_counts_refused_connections_as_failures() -> None:
    """Without a server every request fails, and the run ends."""
    async with served(good) as url:
        pass
    samples = await load(url, times=[0.0, 0.1, 0.2])
    assert samples.status == [0, 0, 0]


@pytest.mark.slow
async def test_timer_is_finer_than_a_millisecond() -> None:
    """The timer fires within half a millisecond of its moment, unless other work intervenes."""
    late: list[float] = []
    fired = asyncio.Event()
    timer = Timer(fired.set)
    while sum(seconds < 0.0005 for seconds in late) < 20 and len(late) < 2000:
        when = time.monotonic() + 0.0033
        timer.set(when)
        await fired.wait()
        late.append(time.monotonic() - when)
        fired.clear()
    timer.close()
    assert min(late) >= 0 and len(late) < 2000


def test_arrivals_have_their_rate() -> None:
    """Poisson arrivals are independent and constant ones evenly spaced, both at the given rate."""
    random, even = poisson(100, 50, 1), constant(100, 50, 1)
    assert len(random) == pytest.approx(5000, rel=0.05) and len(even) == 5000
    assert random == sorted(random) and max(random) < 50 and max(even) < 50
    assert np.diff(even) == pytest.approx(0.01)
    assert np.std(np.diff(random)) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (HORSE, "horse"),
        (b'{"class":"dog"}', "dog"),
        (b"The input picture is classified as [cat], with probability 0.997.", "cat"),
        (b'{"detail": "no"}', None),
    ],
)
def test_class_of_reads_json_and_sentences(body: bytes, name: str | None) -> None:
    """The class is read from this service's JSON and from the sentence of the tutorial's server."""
    assert class_of(body) == name


def samples_of(statuses: list[int], seconds: float = 0.1) -> Samples:
    """Returns samples spread over a second, with latencies of `seconds` times 1, 2, 3 and so on."""
    count = len(statuses)
    return Samples(
        intended=[n / count for n in range(count)],
        latency=[seconds * (n + 1) for n in range(count)],
        status=statuses,
    )


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


@pytest.mark.parametrize("capacity", [0.4, 3.0, 60.0, 1234.0])
def test_find_max_finds_the_highest_rate(capacity: float) -> None:
    """The search ends within five percent of the capacity, wherever it begins."""

    def measure(rate: float) -> Run:
        return summarize("x", rate, [samples_of([200 if rate <= capacity else 503])], 0.0, 1.0)

    tried = [run.offered for run in find_max(measure, 1.0)]
    good = [rate for rate in tried if rate <= capacity]
    assert len(tried) < 20
    assert not good if capacity < 1 else max(good) > capacity / 1.06


@pytest.mark.slow
def test_bench_measures_a_server(tmp_path: pathlib.Path) -> None:
    """Two processes load the real service with a key, and a table, results and a plot are
    written."""
    key = "a-key-of-sixteen-or-more"
    with Server(*SCRIPTED, SHOAL_API_KEYS=key) as server:
        server.wait_until_ready()
        run = subprocess.run(
            [
                *(sys.executable, "-m", "shoal", "bench", server.url),
                *("--rate", "20,40", "--duration", "1", "--warm-up", "0.2", "--processes", "2"),
                *("--slo-ms", "1000", "--out", str(tmp_path)),
            ],
            cwd=ROOT,
            env=os.environ | {"SHOAL_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 0, run.stderr
    assert "20/s poisson" in run.stdout and "40/s poisson" in run.stdout
    report = json.loads((tmp_path / "load_test.json").read_text())
    assert [set(run["statuses"]) for run in report["runs"]] == [{"200"}, {"200"}]
    assert report["runs"][0]["different"] == 0
    assert (tmp_path / "load_test.png").read_bytes().startswith(b"\x89PNG")


def test_bench_writes_results_without_matplotlib(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results are written, and the message names the extra that plots need."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = parser({"bench"}).parse_args(["bench", "--rate", "1", "--out", str(tmp_path)])
    bench.write(options, None, [summarize("x", 10.0, [samples_of([200] * 4)], 0.0, 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["load_test.json"]
    output = capsys.readouterr()
    assert "shoal[train]" in output.err and ".png" not in output.out


@pytest.mark.slow
def test_bench_reports_a_missing_server() -> None:
    """Without a server the command ends with status 1 and one line."""
    run = subprocess.run(
        [sys.executable, "-m", "shoal", "bench", "http://127.0.0.1:9/x", "--rate", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "Is the server running?" in run.stderr and "Traceback" not in run.stderr
