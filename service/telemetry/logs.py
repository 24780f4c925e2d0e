"""Logs to standard output: one line per record, as JSON or as text.

The lines of one turn of the event loop are written with one system call at the end of the turn. One
system call per line would take a seventh of the CPU time of a request. Two kinds of records are
written immediately, together with all earlier lines: warnings, and records that are logged outside
of an event loop. `logging.shutdown` writes the last lines when the process exits.

Callers pass the fields of a record in `extra={"fields": {...}}`. Images and secrets are never
logged.

When a line cannot be written, for example because the disk is full, the line is dropped and the
service continues. As soon as lines can be written again, a warning states the number of dropped
lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import orjson

from service.settings import Settings

STDOUT = 1

log = logging.getLogger("shoal")
MAX_TEXT = 1024
"""Maximum number of characters of a field, because clients choose the length of some fields."""


def configure(settings: Settings) -> None:
    """Send all log records of this process to standard output, in the format of the settings."""
    _open_standard_streams()
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and os.isatty(STDOUT))
    handler = Output(STDOUT)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    # No format uses these fields, and they cost time ("Optimization" in the logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise, the first socket would get the descriptor of standard output, and a client would
    receive the log.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets `descriptor`, the lowest free descriptor


class Output(logging.Handler):
    """Writes lines to a file descriptor: all lines of a turn of the event loop with one call.

    Python's buffered streams are not used. Such streams would keep lines that could not be written,
    fail again at exit, and end the process with status 120.
    """

    def __init__(self, descriptor: int) -> None:
        """
        Args:
            descriptor: File descriptor to write to.
        """
        super().__init__()
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._flushing: asyncio.AbstractEventLoop | None = None
        self._lost = 0
        self._incomplete = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self._line(record))
        except Exception:  # noqa: BLE001  # a request must not fail because of its log line
            self._lost += 1
            return
        loop = _running_loop()
        if loop is None or record.levelno >= logging.WARNING:
            self.flush()
        elif loop is not self._flushing:
            self._flushing = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all pending lines."""
        self.acquire()
        try:
            lines, self._lines, self._flushing = self._lines, [], None
            if lines and self._lost and self._write([self._lost_warning()]) == 0:
                self._lost = 0
            self._lost += self._write(lines)
        finally:
            self.release()

    def _write(self, lines: list[bytes]) -> int:
        """Write lines. Returns the number of lines that were not written completely."""
        rest = b"".join(lines)
        if self._incomplete and rest:
            rest = b"\n" + rest
        size = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        if len(rest) < size:
            self._incomplete = bool(rest)  # part of a line may have been written
        lost, left = 0, len(rest)
        for line in reversed(lines):
            if left <= 0:
                break
            lost, left = lost + 1, left - len(line)
        return lost

    def _lost_warning(self) -> bytes:
        record = {
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "log lines could not be written",
            "fields": {"lost": self._lost},
        }
        return self._line(logging.makeLogRecord(record))

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")


class JsonFormatter(logging.Formatter):
    """Formats records as `{"time": ..., "level": ..., "message": ..., <fields>}`, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(int(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """Formats records as `12:00:00 info     request  method=POST ...`, in local time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{name}={_printable(value)}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():8} {record.getMessage()}"
        if fields:
            line += f"  {fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _printable(value: Any) -> str:
    """Return the value as one line of text without control characters.

    Clients choose some values, and control characters could change the state of a terminal.
    """
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


@functools.lru_cache(maxsize=1)
def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def log_request(
    level: int,
    request: Mapping[str, str | None],
    status: int | str,
    seconds: float,
    code: str | None,
    timing: Mapping[str, float],
) -> None:
    """Log one line about an HTTP or gRPC request that has ended.

    Args:
        level: Log level of the line.
        request: ID, client, method and path of the request. Texts are truncated to `MAX_TEXT`.
        status: HTTP status, or name of the gRPC status.
        seconds: Seconds from the arrival of the request's headers to the end of the response.
        code: Code of the problem that the client received. None: the request succeeded.
        timing: Stage of the request -> duration, in seconds.
    """
    fields: dict[str, Any] = {name: text and text[:MAX_TEXT] for name, text in request.items()}
    fields |= {"status": status, "seconds": _to_microsecond(seconds)}
    if code is not None:
        fields["code"] = code
    for stage, duration in timing.items():
        fields[f"{stage}_seconds"] = _to_microsecond(duration)
    # `log.log` would also search for the calling function, which costs time.
    record = logging.LogRecord(log.name, level, "", 0, "request", None, None)
    record.fields = fields
    log.handle(record)


def _to_microsecond(seconds: float) -> float:
    return round(1e6 * seconds) / 1e6  # three times as fast as `round(seconds, 6)`
