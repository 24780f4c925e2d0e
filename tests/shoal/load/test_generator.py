"""The generator: what it sends, and what it records of each request."""

from __future__ import annotations

import asyncio
import time

import pytest

from shoal.load.generator import Generator, Job
from tests.shoal.load.fakes import HORSE, good, load, read_one, response, served
from tests.waiting import until


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
async def test_generator_chooses_requests_by_its_seed() -> None:
    """Each request is one of the job's, chosen at random; the same seed gives the same ones."""
    received: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received.append(await reader.readuntil(b"."))
            writer.write(response())

    async def sent(url: str, seed: int) -> list[bytes]:
        received.clear()
        times = [0.01 * n for n in range(40)]
        requests = [b"one.", b"two.", b"three."]
        await load(url, requests=requests, times=times, seed=seed)
        return received.copy()

    async with served(record) as url:
        first, again, other = [await sent(url, seed) for seed in (1, 1, 2)]
    assert sorted(first) == sorted(again) != sorted(other)
    assert set(first) == {b"one.", b"two.", b"three."}


@pytest.mark.slow
async def test_generator_counts_bytes() -> None:
    """Whole requests count as sent, and bodies of answers as received."""
    async with served(good) as url:
        samples = await load(url, requests=[b"\r\n\r\npixels"], times=[0.0, 0.1, 0.2])
    assert samples.bytes_sent == 3 * len(b"\r\n\r\npixels")
    assert samples.bytes_received == 3 * len(HORSE)
    assert len(samples.send_lag) == 3 and min(samples.send_lag) >= 0
    assert samples.cpu_share > 0


@pytest.mark.slow
async def test_open_loop_waits_for_answers_after_its_duration() -> None:
    """The run ends with the last answer, however late it is."""
    times = [0.0, 0.4]

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_one(reader)
            await asyncio.sleep(0.6)  # the load ends after 0.5 s
            writer.write(response())

    async with served(late) as url:
        samples = await load(url, times=times)
    assert samples.status == [200, 200]
    assert samples.intended == pytest.approx(times)
    assert min(samples.latency) > 0.6


@pytest.mark.slow
async def test_closed_loop_sends_nothing_after_its_duration() -> None:
    """Each connection ends with the answer to its last request; nothing was late to be sent."""
    answers = 0

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        while True:
            await read_one(reader)
            await asyncio.sleep(0.6)  # the load ends after 0.5 s
            answers += 1
            writer.write(response())

    async with served(late) as url, asyncio.timeout(60):
        samples = await load(url, concurrency=3)
    assert samples.status == [200] * 3 and answers == 3
    assert samples.send_lag == []


@pytest.mark.slow
async def test_generator_reports_progress() -> None:
    """The function gets the numbers of requests that were answered and that failed so far."""
    answers = iter([response(), response(b"", "503 Service Unavailable"), response()])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_one(reader)
            writer.write(next(answers))

    async with served(answer) as url:
        reports: list[tuple[int, int]] = []
        job = Job(url, [b"\r\n\r\npixels"], [None], 60.0, 60.0, seed=1, times=[0.0, 0.1, 0.2])
        running = asyncio.create_task(Generator(job, lambda *counts: reports.append(counts)).run())
        await until(lambda: reports and reports[-1] == (2, 1))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert all(answered <= 2 and failed <= 1 for answered, failed in reports)
