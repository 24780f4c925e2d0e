"""A load test: the images that the server accepts, the loads, and the search for the highest
rate."""

from __future__ import annotations

import argparse
import asyncio
import pathlib
from collections.abc import Sequence

import pytest

from shoal.command import parser
from shoal.load.load_test import LoadTest, LoadTestFailed, find_max
from shoal.load.report import Run, summarize
from tests.shoal.load.fakes import Handle, read_one, response, samples_of, served


def options(*arguments: str) -> argparse.Namespace:
    return parser({"bench"}).parse_args(["bench", *arguments])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three images, which are not decoded here."""
    for name in ("cat_1.jpg", "horse_1.jpg", "photo.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def answering(answers: Sequence[bytes], received: list[bytes]) -> Handle:
    """Returns a handler that sends `answers`, one for each request, and records the requests."""
    pending = iter(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        received.append(head + await reader.readexactly(length))
        writer.write(next(pending))

    return handle


async def prepare(
    folder: pathlib.Path, answers: Sequence[bytes], *arguments: str
) -> tuple[LoadTest, list[bytes]]:
    """Returns a load test of the images in `folder`, and the requests that it sent."""
    received: list[bytes] = []
    async with served(answering(answers, received)) as url:
        chosen = options(url, "--rate", "1", "--raw", "--images", str(folder), *arguments)
        return await asyncio.to_thread(LoadTest, chosen), received


async def test_load_test_sends_each_image_once(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are sent in order, with the key, and labels are compared with the answers."""
    monkeypatch.setenv("SHOAL_API_KEY", "a-key-of-sixteen-or-more")
    _, received = await prepare(folder, [response()] * 3)
    names = [message.partition(b"\r\n\r\n")[2] for message in received]
    assert names == [b"cat_1.jpg", b"horse_1.jpg", b"photo.jpg"]
    assert all(b"X-API-Key: a-key-of-sixteen-or-more\r\n" in message for message in received)
    printed = capsys.readouterr().out
    assert printed == "1 of 2 labeled images are classified correctly.\n"


async def test_load_test_leaves_out_rejected_images(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only accepted images are sent under load, and the number of the others is printed."""
    bad = response(b"{}", "400 Bad Request")
    test, received = await prepare(folder, [bad, response(), bad])
    job = test._job(seed=1, concurrency=1)
    assert job.requests == received[1:2] and job.expected == ["horse"]
    assert "The server rejects 2 of 3 images, which are left out.\n" in capsys.readouterr().out


async def test_load_test_fails_if_every_image_is_rejected(folder: pathlib.Path) -> None:
    """The message has the first image, the status and the answer."""
    bad = response(b"no images today", "400 Bad Request")
    with pytest.raises(LoadTestFailed, match=r"responds with 400 to cat_1.jpg.*no images today"):
        await prepare(folder, [bad] * 3)


@pytest.mark.parametrize("answer", [b"", b"not HTTP at all\r\n\r\n"], ids=["closed", "not HTTP"])
async def test_load_test_fails_if_the_connection_breaks(
    folder: pathlib.Path, answer: bytes
) -> None:
    """The message asks whether the server runs."""
    with pytest.raises(
        LoadTestFailed, match=r"connection was lost.*Check that the server is running"
    ):
        await prepare(folder, [answer])


async def test_load_test_fails_without_a_server() -> None:
    """The message has the URL and asks whether the server runs."""
    async with served(answering([], [])) as url:
        pass
    with pytest.raises(
        LoadTestFailed, match=f"{url} does not respond.*Check that the server is running"
    ):
        await asyncio.to_thread(LoadTest, options(url, "--rate", "1"))


@pytest.mark.slow
async def test_closed_loop_divides_connections_among_processes(tmp_path: pathlib.Path) -> None:
    """Two processes keep three requests in flight together: the server answers once it has all."""
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    in_flight = asyncio.Barrier(3)
    prepared = full = False

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal prepared, full
        while True:
            await read_one(reader)
            if prepared and not full:
                await in_flight.wait()
                full = True
            prepared = True
            writer.write(response())

    async with served(answer) as url:
        arguments = ("--concurrency", "3", "--processes", "2", "--raw", "--images", str(tmp_path))
        chosen = options(url, *arguments, "--duration", "0.5", "--warm-up", "0")
        test = await asyncio.to_thread(LoadTest, chosen)
        run = await asyncio.to_thread(test.closed_loop, 3)
    assert full
    assert run.load == "3 connections" and len(run.generator_cpu) == 2
    assert set(run.statuses) == {"200"} and run.different == 0


@pytest.mark.parametrize("capacity", [0.4, 3.0, 60.0, 1234.0])
def test_find_max_finds_the_highest_rate(capacity: float) -> None:
    """The search ends within five percent of the capacity, wherever it begins."""

    def measure(rate: float) -> Run:
        return summarize("x", rate, [samples_of([200 if rate <= capacity else 503])], 0.0, 1.0)

    tried = [run.offered for run in find_max(measure, 1.0)]
    good = [rate for rate in tried if rate <= capacity]
    assert len(tried) < 20
    assert not good if capacity < 1 else max(good) > capacity / 1.06
