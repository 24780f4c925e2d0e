"""Logs: one line a record, for machines or for people, without pixels."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from service.logs import JsonFormatter, Lines, TextFormatter
from tests.service.conftest import png


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("shoal", logging.INFO, __file__, 1, "hello %s", ("you",), None)
    made.created, made.msecs = 1_700_000_000.25, 250
    made.__dict__.update(extra)
    return made


def test_json() -> None:
    """A JSON object a line: time in UTC, level, message, and the record's fields."""
    line = JsonFormatter().format(record(fields={"status": 200, "path": '/a"b\n'}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "message": "hello you",
        "status": 200,
        "path": '/a"b\n',
    }


def test_traceback_in_one_json_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "\n" not in line and "ValueError: why" in json.loads(line)["traceback"]


def test_text() -> None:
    line = TextFormatter().format(record(fields={"status": 200}))
    assert line.endswith("info     hello you  status=200")


def test_a_client_cannot_forge_a_line() -> None:
    """What moves a cursor or begins a line is shown, not done."""
    line = TextFormatter().format(record(fields={"path": "/x\n12:00:00 info \x1b[31m", "size": 3}))
    assert line.endswith(r"path='/x\n12:00:00 info \x1b[31m'  size=3") and line.isprintable()


async def test_one_line_a_request(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request is told once: who, what, how it ended, and where the time went."""
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


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/ready"])
@pytest.mark.parametrize(
    ("level", "method", "told"),
    [(logging.INFO, "GET", 0), (logging.DEBUG, "GET", 1), (logging.INFO, "DELETE", 1)],
)
async def test_probes_that_find_all_well_are_not_told(
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
    path: str,
    level: int,
    method: str,
    told: int,
) -> None:
    """They come every few seconds: told only when debugging, or when something is wrong."""
    caplog.clear()
    caplog.set_level(level)
    await client.request(method, path)
    assert [r.getMessage() for r in caplog.records if r.name == "shoal"] == ["request"] * told


class Stream(io.StringIO):
    """Remembers what each write said."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def told(stream: Stream) -> Iterator[logging.Logger]:
    """A logger whose lines go to `stream`."""
    logger, handler = logging.getLogger("told"), Lines(stream)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)
    handler.close()


async def test_lines_of_a_turn_are_one_write(told: logging.Logger, stream: Stream) -> None:
    """What a turn of the loop logs is written when it ends, in order; and so in the next turn."""
    told.info("a")
    told.info("b")
    assert stream.writes == []
    await asyncio.sleep(0)
    told.info("c")
    await asyncio.sleep(0)
    assert stream.writes == ["a\nb\n", "c\n"]


async def test_a_warning_does_not_wait(told: logging.Logger, stream: Stream) -> None:
    """It may be the last that the process says; what was before it comes before it."""
    told.info("a")
    told.warning("b")
    assert stream.writes == ["a\nb\n"]


def test_without_a_loop_lines_are_written_at_once(told: logging.Logger, stream: Stream) -> None:
    told.info("a")
    assert stream.writes == ["a\n"]


async def test_another_thread_writes_at_once(told: logging.Logger, stream: Stream) -> None:
    """And with its line those that waited for the end of the loop's turn."""
    told.info("a")
    thread = threading.Thread(target=told.info, args=["b"])
    thread.start()
    thread.join()
    assert stream.writes == ["a\nb\n"]


def test_nothing_is_lost_when_the_loop_ends(told: logging.Logger, stream: Stream) -> None:
    """A line of its last moment is written by `logging.shutdown`, and later loops go on."""

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
