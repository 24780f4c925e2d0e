"""Logging: one line a record on standard output, JSON for machines or text for people.

Lines of one turn of the event loop are written together, at its end: a system call a line would
be a seventh of what a request costs. Warnings, and what is logged outside of a loop, go out at
once with all that was before them, and what is left at exit `logging.shutdown` writes.

What a record says beside its message is in `extra={"fields": {...}}`. Image bytes and secrets
never reach a record.

A line that cannot be written (standard output closed, its disk full) is lost, and the service goes
on: the next one that can be written says how many were. Nothing is kept meanwhile.
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
"""Maximum length of a text in the line of a request. Clients choose the path, for instance."""


def configure(settings: Settings) -> None:
    """Send every record of the process to standard output in the format asked for."""
    _keep_standard_streams()
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and os.isatty(STDOUT))
    handler = Output(STDOUT)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    # Looked up for every record and told by none; so "Optimization" in Python's logging HOWTO.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


def _keep_standard_streams() -> None:
    """One that was closed before the start would be opened again as the first socket, and a client
    would get to read the log."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


class Output(logging.Handler):
    """Writes lines to a descriptor, those of one turn of the event loop in one go.

    Past Python's buffers: those keep what could not be written, raise it again at exit, and so end
    a process with 120 that had nothing to say.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._turn: asyncio.AbstractEventLoop | None = None
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self._line(record))
        except Exception:  # noqa: BLE001  # a line that cannot be made ends no request
            self._lost += 1
            return
        loop = _running_loop()
        if loop is None or record.levelno >= logging.WARNING:
            self.flush()
        elif loop is not self._turn:
            self._turn = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what has not been written yet."""
        self.acquire()
        try:
            lines, self._lines, self._turn = self._lines, [], None
            if lines and self._lost and self._write([self._missing()]) == 0:
                self._lost = 0
            self._lost += self._write(lines)
        finally:
            self.release()

    def _write(self, lines: list[bytes]) -> int:
        """How many of them could not be written to their end."""
        rest = b"".join(lines)
        if self._torn and rest:
            rest = b"\n" + rest
        begun = len(rest)
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        if len(rest) < begun:
            self._torn = bool(rest)  # half a line may be there
        lost, left = 0, len(rest)
        for line in reversed(lines):
            if left <= 0:
                break
            lost, left = lost + 1, left - len(line)
        return lost

    def _missing(self) -> bytes:
        told = {"msg": "log lines could not be written", "fields": {"lost": self._lost}}
        warning = {"levelno": logging.WARNING, "levelname": "WARNING", **told}
        return self._line(logging.makeLogRecord(warning))

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode(errors="backslashreplace")


class JsonFormatter(logging.Formatter):
    """`{"time": ..., "level": ..., "message": ..., <fields>}`, times in UTC."""

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
    """`12:00:00 info     request  method=POST path=/predict ...`, local time."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{name}={_shown(value)}" for name, value in _fields(record).items())
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


def _shown(value: Any) -> str:
    """In one line whatever a client has sent, and nothing that moves a terminal's cursor."""
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
    """Log the line of a request over HTTP or gRPC.

    Args:
        level: The level of the line.
        request: ID, client, method and path of the request, each cut to `MAX_TEXT`.
        status: Status of HTTP, or name of the status of gRPC.
        seconds: Seconds from the head of the request to the end of its answer.
        code: Code of the problem that the client got instead of an answer, if any.
        timing: Seconds of each stage.
    """
    fields: dict[str, Any] = {name: text and text[:MAX_TEXT] for name, text in request.items()}
    fields |= {"status": status, "seconds": _to_microsecond(seconds)}
    if code is not None:
        fields["code"] = code
    for stage, duration in timing.items():
        fields[f"{stage}_seconds"] = _to_microsecond(duration)
    # As `log.log` does, without its search for the caller.
    record = logging.LogRecord(log.name, level, "", 0, "request", None, None)
    record.fields = fields
    log.handle(record)


def _to_microsecond(seconds: float) -> float:
    return round(1e6 * seconds) / 1e6  # a third of the time of `round(seconds, 6)`
