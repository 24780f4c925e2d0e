"""`shoal predict` in this process, with a scripted server: order, output and exit statuses."""

from __future__ import annotations

import asyncio
import io
import json
import pathlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shoal.command import main, parser
from shoal.predict import MAX_CONCURRENT
from tests.shoal.test_prediction import HORSE

Answer = tuple[str, dict[str, Any]]
GOOD: Answer = ("200 OK", HORSE)


def problem(status: str, code: str) -> Answer:
    fields = {"status": int(status.split()[0]), "code": code, "title": "T", "detail": f"D {code}"}
    return status, fields


class Service:
    """Answers each image by its bytes, and records what it received."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Answer] = {}
        self.held: dict[bytes, asyncio.Event] = {}
        self.received: list[bytes] = []
        self.keys: set[str | None] = set()
        self.in_flight = self.most_in_flight = 0
        self.arrived = asyncio.Condition()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            yield f"http://{host}:{port}"
            for held in self.held.values():
                held.set()  # from Python 3.12 on, the server waits for its handlers

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                assert length is not None
                body = await reader.readexactly(int(length[1]))
                key = re.search(r"x-api-key: (.+)\r", head, re.IGNORECASE)
                self.keys.add(key and key[1])
                await self._answer(body.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, image: bytes, writer: asyncio.StreamWriter) -> None:
        self.received.append(image)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        async with self.arrived:
            self.arrived.notify_all()
        if image in self.held:
            await self.held[image].wait()
        self.in_flight -= 1
        status, body = self.answers.get(image, GOOD)
        text = json.dumps(body)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())

    async def wait_for(self, count: int) -> None:
        """Waits until `count` images have arrived."""
        async with asyncio.timeout(60), self.arrived:
            await self.arrived.wait_for(lambda: len(self.received) >= count)


async def predict(*arguments: str) -> int:
    """Runs `shoal predict` in a thread, since it runs an event loop of its own."""
    return await asyncio.to_thread(main, ["predict", *arguments])


@pytest.fixture
def files(tmp_path: pathlib.Path) -> list[str]:
    """Twenty files whose bytes are their names."""
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


@pytest.mark.slow
async def test_predict_prints_results_in_the_order_of_the_files(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The first file is answered last and printed first, and at most `MAX_CONCURRENT` requests are
    in flight."""
    service = Service()
    for file in files[:MAX_CONCURRENT]:
        service.held[pathlib.Path(file).name.encode()] = asyncio.Event()
    first, *others = service.held.values()
    async with service.running() as url:
        running = asyncio.create_task(predict(*files, "--url", url))
        await service.wait_for(MAX_CONCURRENT)
        await asyncio.sleep(0.05)  # in which a request too many would arrive
        assert len(service.received) == MAX_CONCURRENT
        for event in others:
            event.set()
        assert not capsys.readouterr().out
        first.set()
        assert await running == 0
    assert service.most_in_flight <= MAX_CONCURRENT
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("FILE")
    assert [row.split()[:2] for row in rows] == [[file, "horse"] for file in files]


async def test_predict_continues_after_an_error(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Files without a class have a line on standard error, and the status is 1."""
    service = Service()
    service.answers[b"00.png"] = problem("400 Bad Request", "bad_image")
    async with service.running() as url:
        assert await predict(*files[:1], "nowhere.png", *files[1:3], "--url", url) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"shoal predict: {files[0]}: D bad_image",
        "shoal predict: nowhere.png: No such file or directory",
    ]
    header, *rows = said.out.splitlines()
    assert header.startswith("FILE")
    assert [row.split()[0] for row in rows] == files[1:3]


async def test_predict_prints_errors_as_json_in_their_place(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json standard output has an object for each file, and standard error nothing."""
    service = Service()
    service.answers[b"00.png"] = problem("400 Bad Request", "bad_image")
    async with service.running() as url:
        assert await predict(*files[:2], "--json", "--url", url) == 1
    said = capsys.readouterr()
    bad, good = map(json.loads, said.out.splitlines())
    assert (bad["file"], bad["error"]["code"]) == (files[0], "bad_image")
    assert (good["file"], good["class"]) == (files[1], "horse")
    assert not said.err


async def test_predict_ends_at_an_error_that_every_file_would_get(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is printed once, requests in flight are canceled, and further files are not sent."""
    service = Service()
    for file in files[1:]:
        service.held[pathlib.Path(file).name.encode()] = asyncio.Event()
    service.answers[b"00.png"] = problem("401 Unauthorized", "unauthorized")
    async with service.running() as url:
        assert await predict(*files, "--url", url) == 1
    said = capsys.readouterr()
    assert said.err == "shoal predict: D unauthorized (unauthorized)\n" and not said.out
    assert len(service.received) <= MAX_CONCURRENT + 1


@pytest.mark.parametrize("key", [None, "a-key-of-sixteen-or-more"])
async def test_predict_sends_the_key_of_the_environment(
    files: list[str], monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """SHOAL_API_KEY is sent to the server at --url; without it no key is sent."""
    monkeypatch.setenv("SHOAL_API_KEY", key or "")
    service = Service()
    async with service.running() as url:
        assert await predict(files[0], "--url", url) == 0
    assert service.keys == {key}


async def test_predict_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`-` is the image on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"pixels")))
    service = Service()
    async with service.running() as url:
        assert await predict("-", "--json", "--url", url) == 0
    assert service.received == [b"pixels"]
    assert json.loads(capsys.readouterr().out)["file"] == "-"


@pytest.mark.slow
async def test_predict_reports_a_timeout_for_its_file(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has the time of --timeout, and the other files get their classes."""
    service = Service()
    service.held[b"00.png"] = asyncio.Event()
    async with service.running() as url:
        assert await predict(*files[:2], "--timeout", "0.5", "--url", url) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"shoal predict: {files[0]}: .* 0\.5 seconds.*\n", said.err)
    assert files[1] in said.out


@pytest.mark.parametrize(("text", "seconds"), [("0.001", 0.001), ("3600", 3600.0), ("1e2", 100.0)])
def test_timeout_is_in_seconds(text: str, seconds: float) -> None:
    """Any number above 0 and up to 3600 is accepted."""
    options = parser({"predict"}).parse_args(["predict", "a.png", "--timeout", text])
    assert options.timeout == seconds


@pytest.mark.parametrize("text", ["0", "-1", "3601", "nan", "inf", "soon"])
def test_timeout_rejects_other_values(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another value ends with status 2 and a message that names the flag."""
    with pytest.raises(SystemExit) as caught:
        parser({"predict"}).parse_args(["predict", "a.png", "--timeout", text])
    assert caught.value.code == 2 and "--timeout" in capsys.readouterr().err


def test_predict_rejects_a_model_together_with_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags that would have no effect are an error."""
    assert main(["predict", "a.png", "--url", "http://127.0.0.1:9", "--model", "pets"]) == 2
    assert "--model" in capsys.readouterr().err
