"""The generator: what it sends, and what it records of each request."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.shoal.load.fakes import good, load, read_one, response, served


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
