"""Logging: one line a record on standard output, JSON for machines or text for people.

Lines of one turn of the event loop are written together, at its end: a system call a line would
be a seventh of what a request costs. Warnings, and what is logged outside of a loop, go out at
once with all that was before them, and what is left at exit `logging.shutdown` writes.

What a record says beside its message is in `extra={"fields": {...}}`. Image bytes and secrets
never reach a record.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import time
from typing import Any, TextIO

import orjson

from service.settings import Settings

log = logging.getLogger("shoal")


def configure(settings: Settings) -> None:
    """Send every record of the process to standard output in the format asked for."""
    as_text = settings.log_format == "text" or (
        settings.log_format == "auto" and sys.stdout.isatty()
    )
    handler = Lines(sys.stdout)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    # Looked up for every record and told by none; so "Optimization" in Python's logging HOWTO.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)


class Lines(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, those of one turn of the event loop in one go."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._turn: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = _running_loop()
            if loop is None or record.levelno >= logging.WARNING:
                self.flush()
            elif loop is not self._turn:
                self._turn = loop
                loop.call_soon(self.flush)
        except Exception:  # noqa: BLE001  # as in logging's own handlers: told on stderr
            self.handleError(record)

    def flush(self) -> None:
        """Write what has not been written yet."""
        self.acquire()
        try:
            lines, self._lines, self._turn = self._lines, [], None
            if lines:
                self.stream.write("".join(lines))
                self.stream.flush()
        finally:
            self.release()


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
