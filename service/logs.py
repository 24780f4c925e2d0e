"""Logging: one line a record on standard output, JSON for machines or text for people.

What a record says beside its message is in `extra={"fields": {...}}`. Image bytes and secrets
never reach a record.

A line that cannot be written (standard output closed, its disk full) is lost, and the service goes
on: the next one that can be written says how many were. Nothing is kept meanwhile.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from typing import Any

import orjson

from service.settings import Settings

STDOUT = 1

log = logging.getLogger("shoal")


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
    """Writes to a descriptor, past Python's buffers: those keep what could not be written, raise it
    again at exit, and so end a process with 120 that had nothing to say."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode(errors="backslashreplace")
        try:
            if self._lost:
                missing = self.format(logging.makeLogRecord(self._missing()))
                self._write((missing + "\n").encode())
                self._lost = 0
            self._write(line)
        except OSError:
            self._lost += 1

    def _missing(self) -> dict[str, Any]:
        told = {"msg": "log lines could not be written", "fields": {"lost": self._lost}}
        return {"levelno": logging.WARNING, "levelname": "WARNING", **told}

    def _write(self, line: bytes) -> None:
        rest = b"\n" + line if self._torn else line
        while rest:
            written = os.write(self._descriptor, rest)
            rest = rest[written:]
            self._torn = bool(rest)  # only while an error may leave it so


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
