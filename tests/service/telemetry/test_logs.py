"""Logs: one line a record, for machines or for people, without pixels."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from service.telemetry.logs import JsonFormatter, Output, TextFormatter
from tests.fakes import FakeEngine
from tests.service.conftest import png


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("shoal", logging.INFO, __file__, 1, "hello %s", ("you",), None)
    made.created, made.msecs = 1_700_000_000.25, 250
    made.__dict__.update(extra)
    return made


def test_json_formatter_writes_one_object_per_line() -> None:
    """A line is a JSON object with the time in UTC, level, message and fields."""
    line = JsonFormatter().format(record(fields={"status": 200, "path": '/a"b\n'}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "message": "hello you",
        "status": 200,
        "path": '/a"b\n',
    }


def test_json_formatter_writes_tracebacks_in_one_line() -> None:
    """A traceback is a field of the JSON object."""
    try:
        raise ValueError("why")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line and "ValueError: why" in json.loads(line)["traceback"]


def test_text_formatter_writes_fields_after_the_message() -> None:
    """A line has time, level, message and fields."""
    line = TextFormatter().format(record(fields={"status": 200}))
    assert line.endswith("info     hello you  status=200")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """To read from and to write to; both may be closed meanwhile."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def output(descriptor: int) -> Output:
    made = Output(descriptor)
    made.setFormatter(JsonFormatter())
    return made


def test_output_drops_lines_that_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    """A full disk or a closed descriptor raises nothing and writes nothing to standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (writer, full):
        lossy = output(descriptor)
        for _ in range(3):
            lossy.handle(record())
        os.close(descriptor)
        lossy.handle(record())
    assert capfd.readouterr() == ("", "")


def test_output_counts_dropped_lines(pipe: tuple[int, int]) -> None:
    """The next line that can be written is preceded by the number of dropped lines."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    os.write(writer, b"x" * (fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) - 4096))
    told = output(writer)
    told.handle(record(fields={"long": "y" * 6000}))
    told.handle(record())
    os.set_blocking(reader, False)
    before = os.read(reader, 1 << 20)
    assert before.endswith(b"y")
    told.handle(record())
    told.handle(record())
    first, *lines = os.read(reader, 1 << 20).decode().split("\n")
    assert first == "" and lines.pop() == ""
    warning, *others = [json.loads(line) for line in lines]
    assert (warning["level"], warning["lost"]) == ("warning", 2)
    assert [line["message"] for line in others] == ["hello you"] * 2


@pytest.mark.slow
def test_closed_standard_streams_are_opened() -> None:
    """Files and sockets that are opened later do not get descriptors 0 to 2."""
    code = (
        "import os; from service.telemetry.logs import _open_standard_streams; "
        "_open_standard_streams(); print(os.open('/', 0))"
    )
    command = ["sh", "-c", f'exec {sys.executable} -c "{code}" <&- 2>&-']
    assert subprocess.run(command, stdout=subprocess.PIPE).stdout == b"3\n"


def test_text_formatter_escapes_control_characters() -> None:
    """Line breaks and terminal sequences in a field are escaped."""
    line = TextFormatter().format(record(fields={"path": "/x\n12:00:00 info \x1b[31m", "size": 3}))
    assert line.endswith(r"path='/x\n12:00:00 info \x1b[31m'  size=3") and line.isprintable()


async def test_log_request_writes_one_line(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The line of a request has its client, route, status and the time of each stage."""
    caplog.set_level(logging.INFO)
    files = {"img": png(7)}
    await client.post("/predict?key=secret", files=files, headers={"x-request-id": "one"})
    await client.post("/predict", headers={"x-request-id": "two"})
    fields = [record.fields for record in caplog.records if record.getMessage() == "request"]  # type: ignore[attr-defined]
    one, two = fields
    assert (one["request_id"], one["method"], one["path"], one["status"]) == (
        "one",
        "POST",
        "/predict",
        200,
    )
    assert {"decode_seconds", "queue_seconds", "infer_seconds", "seconds"} <= set(one)
    assert (two["status"], two["code"]) == (422, "missing_image")
    assert "secret" not in str(fields)


@pytest.mark.parametrize("text", ["x", "%00", "%F0%9F%98%80"])
@pytest.mark.parametrize("method", ["GET", "POST", "X"])
async def test_log_request_cuts_long_texts(
    settings: Settings,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    method: str,
    text: str,
) -> None:
    """Long paths and headers are cut."""
    caplog.set_level(logging.INFO)
    path = "/" + text * (60_000 // len(text))
    forwarded = "x" * 60_000  # by a trusted proxy that does not check it
    transport = httpx.ASGITransport(create_app(settings, engine.load), client=(forwarded, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.request(method, path, headers={"x-request-id": "x" * 60_000})
    (told,) = [record for record in caplog.records if record.getMessage() == "request"]
    fields = told.fields  # type: ignore[attr-defined]
    assert fields["path"] == urllib.parse.unquote(path)[:1024]
    assert fields["client"] == forwarded[:1024]
    assert all(len(str(value)) <= 1024 for value in fields.values())
    assert len(JsonFormatter().format(told)) < 10_000


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/ready"])
@pytest.mark.parametrize(
    ("level", "method", "told"),
    [(logging.INFO, "GET", 0), (logging.DEBUG, "GET", 1), (logging.INFO, "DELETE", 1)],
)
async def test_successful_probes_are_logged_at_debug(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    path: str,
    level: int,
    method: str,
    told: int,
) -> None:
    """Successful probes are logged at debug, and failed ones at info."""
    caplog.clear()
    caplog.set_level(level)
    await client.request(method, path)
    assert [r.getMessage() for r in caplog.records if r.name == "shoal"] == ["request"] * told


class Packets:
    """A pipe that keeps apart what each write said."""

    def __init__(self) -> None:
        self.ends = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
        self._writes: list[str] = []

    @property
    def writes(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while packet := os.read(self.ends[0], 4096):
                self._writes.append(packet.decode())
        return self._writes


@pytest.fixture
def stream() -> Iterator[Packets]:
    packets = Packets()
    yield packets
    for end in packets.ends:
        os.close(end)


@pytest.fixture
def told(stream: Packets) -> Iterator[logging.Logger]:
    """A logger whose lines go to `stream`."""
    logger, handler = logging.getLogger("told"), Output(stream.ends[1])
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    handler.close()


async def test_output_writes_once_per_turn(told: logging.Logger, stream: Packets) -> None:
    """The lines of one turn of the event loop are written in order, in one call."""
    told.info("a")
    told.info("b")
    assert stream.writes == []
    await asyncio.sleep(0)
    told.info("c")
    await asyncio.sleep(0)
    assert stream.writes == ["a\nb\n", "c\n"]


async def test_output_writes_warnings_immediately(told: logging.Logger, stream: Packets) -> None:
    """A warning is written at once, after the lines before it."""
    told.info("a")
    told.warning("b")
    assert stream.writes == ["a\nb\n"]


def test_output_writes_immediately_without_a_loop(told: logging.Logger, stream: Packets) -> None:
    """Outside of an event loop, each line is written at once."""
    told.info("a")
    assert stream.writes == ["a\n"]


def test_output_drops_records_that_cannot_be_formatted(stream: Packets) -> None:
    """A record that cannot be formatted raises nothing and counts as dropped."""

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    with contextlib.closing(Output(stream.ends[1])) as output:
        output.handle(record(args=(Unprintable(),)))
        output.handle(record())
    lost, line = "".join(stream.writes).splitlines()
    assert "log lines could not be written" in lost
    assert line == "hello you"


async def test_output_writes_immediately_in_other_threads(
    told: logging.Logger, stream: Packets
) -> None:
    """A record of another thread is written at once, after the lines that wait."""
    told.info("a")
    thread = threading.Thread(target=told.info, args=["b"])
    thread.start()
    thread.join()
    assert stream.writes == ["a\nb\n"]


def test_output_writes_the_last_lines_of_a_loop(told: logging.Logger, stream: Packets) -> None:
    """Lines of the last turn of a loop are written by `logging.shutdown`, and later loops work."""

    async def last_word() -> None:
        asyncio.get_running_loop().stop()
        told.info("a")

    loop = asyncio.new_event_loop()
    with contextlib.suppress(RuntimeError):
        loop.run_until_complete(last_word())
    loop.close()
    logging.shutdown()
    assert "".join(stream.writes) == "a\n"
    told.info("b")
    assert "".join(stream.writes) == "a\nb\n"
