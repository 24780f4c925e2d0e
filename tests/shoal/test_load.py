"""The load generator tells the truth: about latency, about failures, and about itself."""

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
from shoal.load import fleet, images
from shoal.load.generator import Generator, Job, Outcome
from shoal.load.images import Picture, class_of
from shoal.load.load_test import find_max
from shoal.load.report import Run, summarise, table
from shoal.load.timer import Timer
from tests.e2e.process import ROOT, SCRIPTED, Server

HORSE = b'{"class": "horse", "probability": 0.9}'
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes = HORSE, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def served(handle: Handle) -> AsyncIterator[str]:
    """`handle` for each connection; closed connections are nobody's error."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/predict"


async def load(url: str, expected: str | None = None, **settings: Any) -> Outcome:
    picture = Picture("a.jpg", b"pixels", None)
    request = images.request(urllib.parse.urlsplit(url), picture, raw=True)
    defaults: dict[str, Any] = {"duration": 0.5, "timeout": 5.0, "seed": 1, "times": None}
    job = Job(url=url, requests=[request], expected=[expected], **{**defaults, **settings})
    return await Generator(job, lambda answered, failed: None).run()


async def read_one(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\npixels")


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await read_one(reader)
        writer.write(response())


@pytest.mark.slow
async def test_a_stall_is_felt_by_all_who_would_have_come() -> None:
    """Open loop: latency counts from the moment a request was meant to be sent."""
    stalled_until = 0.0

    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal stalled_until
        stalled_until = stalled_until or time.monotonic() + 0.4
        while True:
            await read_one(reader)
            await asyncio.sleep(stalled_until - time.monotonic())
            writer.write(response())

    async with served(stalls) as url:
        outcome = await load(url, times=[0.01 * n for n in range(40)])
    assert outcome.status == [200] * 40
    by_moment = sorted(zip(outcome.intended, outcome.latency, strict=True))
    for moment, latency in by_moment[:35]:
        assert latency > 0.4 - moment - 0.01


@pytest.mark.slow
async def test_closed_loop_keeps_so_many_under_way() -> None:
    """Each connection sends its next when it has its answer; no more and no fewer."""
    under_way, most = 0, 0

    async def counts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        while True:
            await read_one(reader)
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.02)
            under_way -= 1
            writer.write(response())

    async with served(counts) as url:
        outcome = await load(url, concurrency=5)
    assert most == 5
    assert len(outcome.status) > 20 and set(outcome.status) == {200}


@pytest.mark.slow
async def test_an_open_loop_may_have_its_connections_first() -> None:
    """So many are open before the first request, and take turns; without, as few as will do."""
    asked = []

    async def notes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(0)
        mine = len(asked) - 1
        while True:
            await read_one(reader)
            asked[mine] += 1
            writer.write(response())

    times = [0.02 * n for n in range(20)]
    async with served(notes) as url:
        await load(url, times=times, concurrency=10)
        assert asked == [2] * 10
        asked.clear()
        await load(url, times=times)
    assert sum(asked) == len(times) and len(asked) < 10


@pytest.mark.slow
async def test_another_callers_answer_is_noticed() -> None:
    """The class must be the one that the same image got before."""
    async with served(good) as url:
        fine = await load(url, "horse", times=[0.0, 0.1])
        swapped = await load(url, "dog", times=[0.0, 0.1])
    assert (fine.different, swapped.different) == (0, 2)


@pytest.mark.slow
async def test_refusals_resets_and_silence_are_counted_apart() -> None:
    """Statuses as they came; 0 for a connection that broke, -1 for no answer in time."""
    answers = iter([response(b"", "503 Service Unavailable"), b"", b"not HTTP at all\r\n\r\n"])

    async def worse_and_worse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        answer = next(answers, None)
        if answer is None:
            await asyncio.sleep(10)
        writer.write(answer or b"")

    async with served(worse_and_worse) as url:
        outcome = await load(url, times=[0.0, 0.1, 0.2, 0.3], timeout=0.5)
    assert sorted(outcome.status) == [-1, 0, 0, 503]


@pytest.mark.slow
async def test_a_server_that_closes_after_each_answer_is_asked_all_the_same() -> None:
    """Open loop: what was due while its connections closed gets others, and the run ends."""

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_one(reader)
        await asyncio.sleep(0.02)
        closing = response().replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        writer.write(closing)

    times = [0.0001 * n for n in range(600)]
    async with served(closes) as url, asyncio.timeout(60):
        outcome = await load(url, times=times)
    assert outcome.status == [200] * len(times)


@pytest.mark.slow
async def test_nobody_listens() -> None:
    """Every request that was due has failed, and the run ends."""
    async with served(good) as url:
        pass
    outcome = await load(url, times=[0.0, 0.1, 0.2])
    assert outcome.status == [0, 0, 0]


@pytest.mark.slow
async def test_the_timer_is_finer_than_asyncios() -> None:
    """Within a fraction of a millisecond of the moment asked for, where nothing comes between; an
    event loop's own, which counts whole ones, would be 0.7 late each time."""
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


def test_when_they_come() -> None:
    """As many as asked for; Poisson's are independent, constant ones evenly spaced."""
    poisson, constant = fleet.poisson(100, 50, 1), fleet.constant(100, 50, 1)
    assert len(poisson) == pytest.approx(5000, rel=0.05) and len(constant) == 5000
    assert poisson == sorted(poisson) and max(poisson) < 50 and max(constant) < 50
    assert np.diff(constant) == pytest.approx(0.01)
    assert np.std(np.diff(poisson)) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (HORSE, "horse"),
        (b'{"class":"dog"}', "dog"),
        (b"The input picture is classified as [cat], with probability 0.997.", "cat"),
        (b'{"detail": "no"}', None),
    ],
)
def test_the_class_of_an_answer(body: bytes, named: str | None) -> None:
    """In our JSON, and in the sentence of the tutorial's server."""
    assert class_of(body) == named


def outcome(statuses: list[int], seconds: float = 0.1) -> Outcome:
    count = len(statuses)
    return Outcome(
        intended=[n / count for n in range(count)],
        latency=[seconds * (n + 1) for n in range(count)],
        status=statuses,
    )


def test_figures() -> None:
    """Of the time measured only; a refusal is no fast answer."""
    run = summarise("x", 10.0, [outcome([200] * 8 + [503, 0], 0.001)], 0.0, 1.0)
    assert run.statuses == {"failed": 1, "200": 8, "503": 1}
    assert run.achieved == 8
    assert run.latency["max"] == pytest.approx(0.008)
    assert run.latency["p50"] == pytest.approx(0.005)
    assert run.latency_of_all["p50"] == pytest.approx(0.006)
    assert run.latency_of_all["p99"] == math.inf
    assert json.loads(json.dumps(run.as_dict(), allow_nan=False))["latency_of_all"]["p99"] is None
    late = summarise("x", 10.0, [outcome([200] * 10)], 0.5, 1.0)
    assert late.statuses == {"200": 5}


@pytest.mark.parametrize(
    ("changes", "limited"),
    [({}, False), ({"cpu_share": 0.95}, True), ({"send_lag": [0.01] * 9}, True)],
)
def test_it_says_when_it_is_the_limit(changes: dict[str, Any], limited: bool) -> None:
    """A generator without time to spare measures itself."""
    seen = outcome([200] * 4)
    for name, value in changes.items():
        setattr(seen, name, value)
    run = summarise("x", 10.0, [seen], 0.0, 1.0)
    assert run.limited_by_generator is limited
    assert ("generator" in table([run])) is limited


@pytest.mark.parametrize("most", [0.4, 3.0, 60.0, 1234.0])
def test_the_highest_rate_is_closed_in_on(most: float) -> None:
    """To five percent, whether it lies above or below where the search begins."""

    def measure(rate: float) -> Run:
        return summarise("x", rate, [outcome([200 if rate <= most else 503])], 0.0, 1.0)

    tried = [run.offered for run in find_max(measure, 1.0)]
    good = [rate for rate in tried if rate <= most]
    assert len(tried) < 20
    assert not good if most < 1 else max(good) > most / 1.06


@pytest.mark.slow
def test_from_the_command_line(tmp_path: pathlib.Path) -> None:
    """Two processes against the real service, which wants a key: a table, figures and a plot; exit
    status 0."""
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


def test_figures_without_matplotlib(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Are written all the same, and what would draw them is told."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = parser({"bench"}).parse_args(["bench", "--rate", "1", "--out", str(tmp_path)])
    bench.write(options, None, [summarise("x", 10.0, [outcome([200] * 4)], 0.0, 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["load_test.json"]
    said = capsys.readouterr()
    assert "shoal[train]" in said.err and ".png" not in said.out


@pytest.mark.slow
def test_no_server() -> None:
    """One line that says what to look at, exit status 1."""
    run = subprocess.run(
        [sys.executable, "-m", "shoal", "bench", "http://127.0.0.1:9/x", "--rate", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "Is the server running?" in run.stderr and "Traceback" not in run.stderr
